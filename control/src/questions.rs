//! What the shards ask of the control thread, in a queue for each kind of answer: many questions of one kind hold up no
//! question of the other, and a question that finds no room, or nobody who would answer it, is refused at once.

use halo_core::demand::Question;
use tokio::sync::mpsc;

/// Questions of all shards that may wait for one who answers them, of each kind.
const QUESTIONS_MAX: usize = 1024;

/// Where shards put their questions.
#[derive(Debug, Clone)]
pub struct Asked {
    mesh: mpsc::Sender<Question>,
    certificates: mpsc::Sender<Question>,
}

/// Questions by who answers them. A queue that nobody answers is dropped, and what would go there is refused.
#[derive(Debug)]
pub struct Questions {
    /// About workloads and services.
    pub mesh: mpsc::Receiver<Question>,
    /// About the certificates of the node's own identities.
    pub certificates: mpsc::Receiver<Question>,
}

/// Both ends of the queues.
pub fn queues() -> (Asked, Questions) {
    let (mesh, mesh_asked) = mpsc::channel(QUESTIONS_MAX);
    let (certificates, certificates_asked) = mpsc::channel(QUESTIONS_MAX);
    (Asked { mesh, certificates }, Questions { mesh: mesh_asked, certificates: certificates_asked })
}

impl Asked {
    /// Puts a question; `false` when its queue is full, or nobody answers such questions. It never blocks.
    pub fn ask(&self, question: Question) -> bool {
        let queue = match question {
            Question::Certificate(_) => &self.certificates,
            Question::Address(_) | Question::Service(_) => &self.mesh,
        };
        queue.try_send(question).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use halo_core::id::Identity;
    use halo_core::net::NetworkAddress;

    use super::*;

    fn of_certificate() -> Question {
        Question::Certificate(Identity::new("td", "shop", "cart"))
    }

    fn of_mesh() -> Question {
        Question::Address(NetworkAddress { network: "n1".into(), ip: Ipv4Addr::LOCALHOST.into() })
    }

    #[test]
    fn a_question_that_finds_no_room_is_refused_and_holds_up_no_other_kind() {
        let (asked, mut questions) = queues();
        assert!((0..QUESTIONS_MAX).all(|_| asked.ask(of_mesh())));
        assert!(!asked.ask(of_mesh()));
        assert!(asked.ask(of_certificate()));
        assert_eq!(questions.certificates.try_recv(), Ok(of_certificate()));
        assert_eq!(questions.mesh.try_recv(), Ok(of_mesh()));
        assert!(asked.ask(of_mesh()));
    }

    #[test]
    fn a_question_that_nobody_answers_is_refused() {
        let (asked, questions) = queues();
        let Questions { mesh, certificates: _certificates } = questions;
        drop(mesh);
        assert!(!asked.ask(of_mesh()));
        assert!(asked.ask(of_certificate()));
    }
}
