//! A connection to a PostgreSQL server, on which nothing is waited for without end.
//!
//! A server may fall silent anywhere: before it asks for a password, or in the middle of a statement. If its machine is
//! gone, the system notices by what is never acknowledged. If only its process stands still, nobody does: therefore
//! whatever is asked of it has a limit here, longer than the server's own.

use std::collections::HashMap;
use std::fmt;
use std::pin::{Pin, pin};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_postgres::error::Severity;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Row, Statement};

use crate::db::Value;
use crate::{Error, tls};

/// Statements that are kept prepared.
pub(crate) const MAX_STATEMENTS: usize = 64;
/// How long connecting to an address of a server may take, where the ledger's says nothing else.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a statement may take from here: a server that is at work has given it up before.
const SILENCE: Duration = Duration::from_secs(35);
/// How long what was sent may stay unacknowledged, where the address says nothing else.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// When a connection without traffic is asked for a sign of life, how often, and how many times in vain, where the
/// address says nothing else.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(3), 3);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// A connection, with the statements that it has prepared.
pub(crate) struct Server {
    // Dropped first, so that the connection knows that it is to end.
    client: Client,
    statements: HashMap<String, Statement>,
    link: Link,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

impl Server {
    /// Connects to the server at an address.
    ///
    /// # Errors
    /// [`Error::Address`] and [`Error::Encryption`] if the address makes no sense; [`Error::Silent`] and
    /// [`Error::Server`] if nobody answers there, or not as it should be.
    pub(crate) fn connect(address: &str) -> Result<Self, Error> {
        Self::connect_with(address, SILENCE)
    }

    /// `silence`: how long a statement may take.
    fn connect_with(address: &str, silence: Duration) -> Result<Self, Error> {
        let (mut config, tls) = tls::read(address)?;
        let each = be_watchful(&mut config);
        // A host may have an address of either kind.
        let n_addresses = u32::try_from(2 * config.get_hosts().len()).unwrap_or(u32::MAX);
        let limit = each.saturating_mul(n_addresses.max(1));
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::Connection)?;
        let connecting = async { tokio::time::timeout(limit, config.connect(tls)).await };
        let (client, connection) = runtime.block_on(connecting).map_err(|_| Error::Silent)??;
        let mut server = Self {
            client,
            statements: HashMap::new(),
            link: Link {
                runtime,
                connection: Some(Box::pin(connection)),
                silence,
            },
        };
        // Somebody else's lock must not stop the gateway for ever.
        server.batch("SET lock_timeout = '10s'; SET statement_timeout = '30s'")?;
        Ok(server)
    }

    /// Runs a statement; gives how many rows it changed.
    pub(crate) fn execute(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, Error> {
        let statement = self.prepared(sql)?;
        let values = parameters(values);
        self.link.wait(self.client.execute(&statement, &values))
    }

    /// All rows of a query.
    pub(crate) fn query(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, Error> {
        let statement = self.prepared(sql)?;
        let values = parameters(values);
        self.link.wait(self.client.query(&statement, &values))
    }

    /// Runs several statements without values.
    pub(crate) fn batch(&mut self, sql: &str) -> Result<(), Error> {
        self.link.wait(self.client.batch_execute(sql))
    }

    /// Whether the connection has ended, so that nothing can be asked on it any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.link.connection.is_none()
    }

    fn prepared(&mut self, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        // Places are `$1` there, and `?` stands for nothing else in any statement.
        let statement = self.link.wait(self.client.prepare(&sql.replace('?', "$")))?;
        if self.statements.len() < MAX_STATEMENTS {
            self.statements.insert(sql.to_string(), statement.clone());
        }
        Ok(statement)
    }
}

fn parameters<'a>(values: &'a [Value<'_>]) -> Vec<&'a (dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

/// Has the system notice a machine that is gone, as the address says or soon; gives how long connecting to one address
/// may take.
fn be_watchful(config: &mut Config) -> Duration {
    let each = config.get_connect_timeout().copied().unwrap_or(CONNECT);
    config.connect_timeout(each).application_name("carat");
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(UNACKNOWLEDGED);
    }
    let (idle, interval, retries) = KEEPALIVE;
    if config.get_keepalives_idle() == Config::new().get_keepalives_idle() {
        config.keepalives_idle(idle);
    }
    if config.get_keepalives_interval().is_none() {
        config.keepalives_interval(interval);
    }
    if config.get_keepalives_retries().is_none() {
        config.keepalives_retries(retries);
    }
    each
}

/// Whether nothing follows an error: it is not about a statement, or the server says that it ends the connection with it,
/// which may arrive before the end itself.
fn is_last(error: &tokio_postgres::Error) -> bool {
    error
        .as_db_error()
        .is_none_or(|error| matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic)))
}

/// What moves bytes to and fro as long as somebody waits; it ends with the connection.
type Moving = dyn Future<Output = Result<(), tokio_postgres::Error>> + Send;

/// What carries a client's words, and where they are waited for.
struct Link {
    runtime: Runtime,
    /// None when it has ended.
    connection: Option<Pin<Box<Moving>>>,
    silence: Duration,
}

impl Link {
    /// Waits for an answer, but not for ever.
    fn wait<T>(
        &mut self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        let Self {
            runtime,
            connection,
            silence,
        } = self;
        let answered = async {
            let mut answer = pin!(answer);
            if let Some(moving) = connection.as_mut() {
                tokio::select! {
                    biased;
                    // How it ended says more than that the client has lost it.
                    ended = moving => {
                        *connection = None;
                        ended?;
                    }
                    done = &mut answer => return done,
                }
            }
            answer.await
        };
        let limited = runtime.block_on(async { tokio::time::timeout(*silence, answered).await });
        match limited {
            Ok(answered) => answered.map_err(|error| {
                if is_last(&error) {
                    *connection = None;
                }
                error.into()
            }),
            Err(_) => {
                // What it may yet say is nobody's answer; and whoever gives up a transaction need not wait again.
                *connection = None;
                Err(Error::Silent)
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let goodbye = async { tokio::time::timeout(GOODBYE, connection).await };
            // The server finds out by itself if it is not told.
            let _told = self.runtime.block_on(goodbye);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;

    /// The address of a server that does something with one connection and then says nothing more.
    fn server(greet: impl FnOnce(&mut TcpStream) + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            greet(&mut client);
            let _until_it_leaves = client.read_to_end(&mut Vec::new());
        });
        format!("host=127.0.0.1 port={port} user=c sslmode=disable connect_timeout=1")
    }

    #[test]
    fn a_server_that_never_greets_is_not_waited_for() {
        let began = Instant::now();
        let error = Server::connect(&server(|_| {})).unwrap_err();
        assert!(matches!(error, Error::Silent), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_statement_without_an_answer_ends_the_connection() {
        let address = server(|client| {
            let mut words = [0; 1024];
            // No password is wanted, and it is ready; so it is after the first statements.
            for answer in [
                &b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I"[..],
                b"C\0\0\0\x08SET\0Z\0\0\0\x05I",
            ] {
                let _n = client.read(&mut words).unwrap();
                client.write_all(answer).unwrap();
            }
        });
        let mut server = Server::connect_with(&address, Duration::from_secs(1)).unwrap();
        assert!(!server.is_lost());
        let error = server.batch("BEGIN").unwrap_err();
        assert!(matches!(error, Error::Silent), "{error:?}");
        assert!(server.is_lost());
        let began = Instant::now();
        assert!(matches!(server.batch("ROLLBACK"), Err(Error::Server(_))));
        assert!(
            began.elapsed() < Duration::from_millis(900),
            "it is not waited for again"
        );
    }

    #[test]
    fn what_the_address_says_is_kept() {
        let mut config: Config = "host=h keepalives_idle=60 tcp_user_timeout=70 connect_timeout=8"
            .parse()
            .unwrap();
        assert_eq!(be_watchful(&mut config), Duration::from_secs(8));
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(60));
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(70)));
        let mut config: Config = "host=h".parse().unwrap();
        assert_eq!(be_watchful(&mut config), CONNECT);
        assert_eq!(config.get_keepalives_idle(), KEEPALIVE.0);
        assert_eq!(config.get_tcp_user_timeout(), Some(&UNACKNOWLEDGED));
    }
}
