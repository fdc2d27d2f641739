//! rustls' unbuffered connection in either role, behind one step function.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};
use rustls::{CommonState, Error};

/// A connection in one of the two roles.
pub(super) enum Connection {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What one step came to.
pub(super) enum Step {
    /// Something was done; step again.
    Again,
    /// The handshake needs another record.
    Blocked,
    /// Application data may be sent; another record may be presented.
    Traffic,
    /// The peer sent close_notify.
    Closed,
}

/// Where a step puts what comes out.
pub(super) struct Sink<'a> {
    /// Bytes to send are appended here.
    pub(super) out: &'a mut Vec<u8>,
    /// Opened application data is appended here.
    pub(super) plaintext: &'a mut Vec<u8>,
}

impl Connection {
    /// Takes one step over `input`, which holds whole records from the first one not yet discarded. Returns how many
    /// bytes at its front are done; the caller drops them before the next step.
    pub(super) fn step(&mut self, input: &mut [u8], sink: &mut Sink<'_>) -> (usize, Result<Step, Error>) {
        match self {
            Self::Client(connection) => step(connection.as_mut(), input, sink),
            Self::Server(connection) => step(connection.as_mut(), input, sink),
        }
    }

    /// After an error, appends the alert that rustls has queued. It takes no further step: rustls must not look at
    /// the offending bytes again.
    pub(super) fn take_alert(&mut self, input: &mut [u8], sink: &mut Sink<'_>) {
        while self.common().wants_write() {
            if self.step(input, sink).1.is_err() {
                return;
            }
        }
    }

    /// Lets `write` append to `out`, where `write` says how many bytes it needs if the space it gets is too small.
    /// `input` is as in [`Connection::step`], with nothing in it that is still to be processed.
    pub(super) fn write(
        &mut self,
        input: &mut [u8],
        out: &mut Vec<u8>,
        what: Write<'_>,
    ) -> Result<(), Error> {
        match self {
            Self::Client(connection) => write(connection.as_mut(), input, out, what),
            Self::Server(connection) => write(connection.as_mut(), input, out, what),
        }
    }

    /// The state that both roles share.
    pub(super) fn common(&self) -> &CommonState {
        match self {
            Self::Client(connection) => connection,
            Self::Server(connection) => connection,
        }
    }
}

/// What to write once traffic may flow.
#[derive(Clone, Copy)]
pub(super) enum Write<'a> {
    /// Application data, at most one record.
    Data(&'a [u8]),
    /// A close_notify alert.
    CloseNotify,
}

/// What both roles of a rustls connection can do; rustls has it as two inherent functions.
trait Process {
    type Data;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Process for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }
}

impl Process for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }
}

fn step(
    connection: &mut impl Process,
    input: &mut [u8],
    sink: &mut Sink<'_>,
) -> (usize, Result<Step, Error>) {
    let UnbufferedStatus { mut discard, state } = connection.process(input);
    let step = match state {
        Ok(ConnectionState::EncodeTlsData(mut message)) => encode(&mut message, sink.out),
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            // The bytes are in the caller's buffer, which is as good as sent.
            transmit.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    sink.plaintext.extend_from_slice(record.payload);
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(Step::Again),
            }
        },
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::Blocked),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Traffic),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Step::Closed),
        // Early data, which is never offered, and states of later releases.
        Ok(_) => Err(Error::HandshakeNotComplete),
        Err(error) => Err(error),
    };
    (discard, step)
}

fn encode<Data>(message: &mut EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<Step, Error> {
    let start = out.len();
    loop {
        match message.encode(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(Step::Again);
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                out.resize(start + required_size, 0);
            }
            Err(EncodeError::AlreadyEncoded) => return Ok(Step::Again),
        }
    }
}

fn write(
    connection: &mut impl Process,
    input: &mut [u8],
    out: &mut Vec<u8>,
    what: Write<'_>,
) -> Result<(), Error> {
    loop {
        match connection.process(input).state? {
            ConnectionState::EncodeTlsData(mut message) => {
                encode(&mut message, out)?;
            }
            ConnectionState::TransmitTlsData(transmit) => transmit.done(),
            ConnectionState::WriteTraffic(mut traffic) => return write_traffic(&mut traffic, out, what),
            // Seen once, when the peer has closed its direction; ours is still open.
            ConnectionState::PeerClosed => {}
            _ => return Err(Error::HandshakeNotComplete),
        }
    }
}

fn write_traffic<Data>(
    traffic: &mut WriteTraffic<'_, Data>,
    out: &mut Vec<u8>,
    what: Write<'_>,
) -> Result<(), Error> {
    let start = out.len();
    loop {
        let written = match what {
            Write::Data(data) => traffic.encrypt(data, &mut out[start..]),
            Write::CloseNotify => traffic.queue_close_notify(&mut out[start..]),
        };
        match written {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => {
                out.resize(start + required_size, 0);
            }
            Err(EncryptError::EncryptExhausted) => return Err(Error::EncryptError),
        }
    }
}
