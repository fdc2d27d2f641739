//! The node agent's side of pod enrolment.

mod message;
pub mod server;
