//! No mesh: the pods talk over the kernel alone. What everything else is measured against.

use std::sync::Arc;

use halo::lab::process::Process;
use halo::lab::topology::Topology;
use halo::lab::{Lab, Result};

use super::{Carrier, Subject};
use crate::model::{Load, NO_MESH, SubjectInfo};

/// No proxy at all.
#[derive(Debug)]
pub(super) struct NoMesh;

impl Subject for NoMesh {
    fn info(&self) -> SubjectInfo {
        SubjectInfo { name: NO_MESH.into(), title: "no mesh".into(), version: String::new() }
    }

    fn unfit(&self, _: &Load) -> Option<String> {
        None
    }

    fn start(&self, _: Arc<Lab>, _: Arc<Topology>) -> Result<Box<dyn Carrier>> {
        Ok(Box::new(Self))
    }
}

impl Carrier for NoMesh {
    fn processes(&self) -> Vec<Arc<Process>> {
        Vec::new()
    }

    fn cycle(&self, _: &str) -> Result<()> {
        Ok(())
    }
}
