//! Proof that every thread of a worker works: each answers from its own event loop.

use tokio::sync::{mpsc, watch};

/// Answers that wait: one for each thread and question, and one question is open at a time.
const ANSWERS: usize = 256;

/// A thread's end.
#[derive(Clone, Debug)]
pub struct Pulse {
    questions: watch::Receiver<u64>,
    answers: mpsc::Sender<u64>,
}

/// The end of who asks all threads.
#[derive(Debug)]
pub struct Pulses {
    questions: watch::Sender<u64>,
    answers: mpsc::Receiver<u64>,
    threads: usize,
    /// Threads that have not answered the last question.
    missing: usize,
}

/// For a worker of so many threads.
pub fn pulses(threads: usize) -> (Pulse, Pulses) {
    let (asking, questions) = watch::channel(0);
    let (answering, answers) = mpsc::channel(ANSWERS);
    (Pulse { questions, answers: answering }, Pulses { questions: asking, answers, threads, missing: 0 })
}

impl Pulse {
    /// Answers as long as somebody asks; a task of the thread that shall prove that it works.
    pub async fn beat(mut self) {
        while self.questions.changed().await.is_ok() {
            let question = *self.questions.borrow_and_update();
            if self.answers.send(question).await.is_err() {
                return;
            }
        }
    }
}

impl Pulses {
    /// Asks all threads, unless they have not all answered the last question yet.
    pub fn ask(&mut self) {
        if self.missing == 0 {
            self.missing = self.threads;
            self.questions.send_modify(|number| *number += 1);
        }
    }

    /// Returns when all threads have answered the question; never without one. May be dropped and
    /// called again.
    pub async fn all_answered(&mut self) {
        loop {
            match self.answers.recv().await {
                Some(number) if number == *self.questions.borrow() && self.missing > 0 => {
                    self.missing -= 1;
                    if self.missing == 0 {
                        return;
                    }
                }
                Some(_) => {}
                // No thread is left, so none can prove anything.
                None => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn one_thread_that_does_not_answer_is_enough_and_is_waited_for() {
        let (pulse, mut pulses) = pulses(2);
        let first = tokio::spawn(pulse.clone().beat());
        pulses.ask();
        let wait = Duration::from_millis(50);
        assert!(tokio::time::timeout(wait, pulses.all_answered()).await.is_err());
        // Asked again meanwhile: the first thread's answer does not count twice.
        pulses.ask();
        assert!(tokio::time::timeout(wait, pulses.all_answered()).await.is_err());
        let second = tokio::spawn(Pulse { questions: late(&pulse), ..pulse }.beat());
        tokio::time::timeout(wait * 20, pulses.all_answered()).await.unwrap();
        pulses.ask();
        tokio::time::timeout(wait * 20, pulses.all_answered()).await.unwrap();
        assert!(tokio::time::timeout(wait, pulses.all_answered()).await.is_err(), "nothing was asked");
        first.abort();
        second.abort();
    }

    /// A thread that hung while it was asked: the question is new to it.
    fn late(pulse: &Pulse) -> watch::Receiver<u64> {
        let mut questions = pulse.questions.clone();
        questions.mark_changed();
        questions
    }
}
