//! The node agent's side of pod enrolment.

pub mod server;
