//! One small interface to the database, so that every statement is written once.
//!
//! Statements have numbered places (`?1`), values go in as [`Value`]s, and what comes back is a [`Record`] whose columns
//! are taken in their order. Every number is a signed integer of 64 bits: money, times and counts alike.

use std::fmt;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::{ToSqlOutput, ValueRef};
use tokio_postgres::types::{IsNull, Type};

use crate::server::{MAX_STATEMENTS, Server};
use crate::{Error, Micros, Place};

/// A value on its way into a statement.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    Null,
    Int(i64),
    Text(&'a str),
    Blob(&'a [u8]),
}

impl From<i64> for Value<'_> {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}

impl From<u64> for Value<'_> {
    fn from(n: u64) -> Self {
        Self::Int(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

impl From<Micros> for Value<'_> {
    fn from(amount: Micros) -> Self {
        amount.0.into()
    }
}

impl From<bool> for Value<'_> {
    fn from(flag: bool) -> Self {
        Self::Int(i64::from(flag))
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Value<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::Blob(bytes)
    }
}

impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Values of a statement.
macro_rules! values {
    ($($value:expr),* $(,)?) => { &[$($crate::db::Value::from($value)),*] };
}
pub(crate) use values;

impl rusqlite::ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Int(n) => ValueRef::Integer(*n),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl tokio_postgres::types::ToSql for Value<'_> {
    fn to_sql(
        &self,
        kind: &Type,
        out: &mut bytes::BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Int(n) => n.to_sql(kind, out),
            Self::Text(text) => text.to_sql(kind, out),
            Self::Blob(bytes) => bytes.to_sql(kind, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        // The schema has no other kinds, and what is sent for another is refused there.
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

/// A value that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cell {
    Null,
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// A row that came back; its columns are taken one after another.
#[derive(Debug)]
pub(crate) struct Record(std::vec::IntoIter<Cell>);

fn shape(expected: &str, found: Option<&Cell>) -> Error {
    Error::Shape(format!("{expected} was expected, and {found:?} came"))
}

impl Record {
    /// A number, or nothing.
    pub(crate) fn opt_int(&mut self) -> Result<Option<i64>, Error> {
        match self.0.next() {
            Some(Cell::Int(n)) => Ok(Some(n)),
            Some(Cell::Null) => Ok(None),
            other => Err(shape("a number", other.as_ref())),
        }
    }

    pub(crate) fn int(&mut self) -> Result<i64, Error> {
        self.opt_int()?.ok_or_else(|| shape("a number", None))
    }

    /// A count: what is below nothing is nothing.
    pub(crate) fn count(&mut self) -> Result<u64, Error> {
        Ok(u64::try_from(self.int()?).unwrap_or(0))
    }

    pub(crate) fn opt_count(&mut self) -> Result<Option<u64>, Error> {
        Ok(self.opt_int()?.map(|n| u64::try_from(n).unwrap_or(0)))
    }

    pub(crate) fn opt_text(&mut self) -> Result<Option<String>, Error> {
        match self.0.next() {
            Some(Cell::Text(text)) => Ok(Some(text)),
            Some(Cell::Null) => Ok(None),
            other => Err(shape("a text", other.as_ref())),
        }
    }

    pub(crate) fn text(&mut self) -> Result<String, Error> {
        self.opt_text()?.ok_or_else(|| shape("a text", None))
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        match self.0.next() {
            Some(Cell::Blob(bytes)) => {
                let n = bytes.len();
                bytes
                    .try_into()
                    .map_err(|_| Error::Shape(format!("{N} bytes were expected, and {n} came")))
            }
            other => Err(shape("bytes", other.as_ref())),
        }
    }
}

/// A connection.
pub(crate) enum Db {
    /// A file of this machine.
    Sqlite(Connection),
    /// A server.
    Postgres(Box<Server>),
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite(_) => "Db::Sqlite",
            Self::Postgres(_) => "Db::Postgres",
        })
    }
}

impl Db {
    pub(crate) fn open(place: &Place) -> Result<Self, Error> {
        match place {
            Place::Sqlite(path) => {
                let connection = crate::place::open(path)?;
                connection.busy_timeout(Duration::from_secs(10))?;
                connection.pragma_update(None, "journal_mode", "WAL")?;
                connection.pragma_update(None, "synchronous", "FULL")?;
                connection.set_prepared_statement_cache_capacity(MAX_STATEMENTS);
                Ok(Self::Sqlite(connection))
            }
            Place::Postgres { url, .. } => Ok(Self::Postgres(Box::new(Server::connect(url)?))),
        }
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Whether it is a server's and has ended: another one must be opened.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            Self::Postgres(server) => server.is_lost(),
        }
    }

    /// Runs a statement; gives how many rows it changed.
    pub(crate) fn execute(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, Error> {
        match self {
            Self::Sqlite(connection) => {
                let mut statement = connection.prepare_cached(sql)?;
                Ok(statement.execute(rusqlite::params_from_iter(values))? as u64)
            }
            Self::Postgres(server) => server.execute(sql, values),
        }
    }

    /// Runs several statements without values.
    pub(crate) fn batch(&mut self, sql: &str) -> Result<(), Error> {
        match self {
            Self::Sqlite(connection) => connection.execute_batch(sql)?,
            Self::Postgres(server) => server.batch(sql)?,
        }
        Ok(())
    }

    /// All rows of a query.
    pub(crate) fn query(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Record>, Error> {
        match self {
            Self::Sqlite(connection) => {
                let mut statement = connection.prepare_cached(sql)?;
                let n_columns = statement.column_count();
                let mut rows = statement.query(rusqlite::params_from_iter(values))?;
                let mut records = Vec::new();
                while let Some(row) = rows.next()? {
                    let cells = (0..n_columns).map(|i| sqlite_cell(row.get_ref(i)?));
                    records.push(Record(cells.collect::<Result<Vec<_>, Error>>()?.into_iter()));
                }
                Ok(records)
            }
            Self::Postgres(server) => {
                let rows = server.query(sql, values)?;
                let record = |row: &tokio_postgres::Row| {
                    let cells = (0..row.len()).map(|i| postgres_cell(row, i));
                    Ok(Record(cells.collect::<Result<Vec<_>, Error>>()?.into_iter()))
                };
                rows.iter().map(record).collect()
            }
        }
    }

    /// The first row of a query, if there is one.
    pub(crate) fn first(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Option<Record>, Error> {
        Ok(self.query(sql, values)?.into_iter().next())
    }

    /// The one row of a query that always has one.
    pub(crate) fn one(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Record, Error> {
        self.first(sql, values)?
            .ok_or_else(|| Error::Shape("a query gave no row".into()))
    }

    /// Does all of it, or none.
    pub(crate) fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.batch(match self {
            Self::Sqlite(_) => "BEGIN IMMEDIATE",
            Self::Postgres(_) => "BEGIN",
        })?;
        match work(self) {
            Ok(result) => {
                self.batch("COMMIT")?;
                Ok(result)
            }
            Err(error) => {
                // The connection may be gone; then the other side has rolled back by itself.
                let _rolled_back = self.batch("ROLLBACK");
                Err(error)
            }
        }
    }

    /// Changes when somebody has changed keys or accounts.
    pub(crate) fn version(&mut self) -> Result<i64, Error> {
        self.one(
            match self {
                // Changes with every write of another connection, a person's own included.
                Self::Sqlite(_) => "PRAGMA data_version",
                Self::Postgres(_) => "SELECT CAST(coalesce(max(n), 0) AS BIGINT) FROM changes",
            },
            &[],
        )?
        .int()
    }
}

fn sqlite_cell(value: ValueRef<'_>) -> Result<Cell, Error> {
    Ok(match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(n) => Cell::Int(n),
        ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Cell::Blob(bytes.to_vec()),
        // A sum too large for an integer becomes one; amounts are bounded so that none does.
        ValueRef::Real(x) => return Err(Error::Shape(format!("a whole number was expected, and {x} came"))),
    })
}

fn postgres_cell(row: &tokio_postgres::Row, i: usize) -> Result<Cell, Error> {
    let kind = row.columns()[i].type_();
    Ok(if *kind == Type::INT8 {
        row.try_get::<_, Option<i64>>(i)?.map_or(Cell::Null, Cell::Int)
    } else if *kind == Type::BYTEA {
        row.try_get::<_, Option<Vec<u8>>>(i)?
            .map_or(Cell::Null, Cell::Blob)
    } else {
        row.try_get::<_, Option<String>>(i)?
            .map_or(Cell::Null, Cell::Text)
    })
}
