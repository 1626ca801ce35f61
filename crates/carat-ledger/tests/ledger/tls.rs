//! Connections to a server under TLS (`bash .ci/postgres COMMAND` starts one that has a certificate).

use carat_ledger::{Admin, Error, Place};

/// Connections of carat's under TLS, as the server counts them.
fn n_encrypted(server: &str) -> i64 {
    let mut client = postgres::Client::connect(server, postgres::NoTls).unwrap();
    let sql = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
               WHERE ssl AND application_name = 'carat' AND datname = 'tls'";
    client.query_one(sql, &[]).unwrap().get(0)
}

#[test]
fn the_address_says_how_much_is_checked() {
    let vars = [
        "CARAT_TEST_POSTGRES",
        "CARAT_TEST_POSTGRES_TLS",
        "CARAT_TEST_POSTGRES_CERTS",
    ];
    let [Ok(socket), Ok(tcp), Ok(certs)] = vars.map(std::env::var) else {
        println!("skipped: no server with a certificate is at hand; run the tests by `bash .ci/postgres`");
        return;
    };
    let server = format!("{socket} dbname=postgres");
    let mut client = postgres::Client::connect(&server, postgres::NoTls).unwrap();
    client.batch_execute("CREATE DATABASE tls").unwrap();
    let tcp = tcp.replace("dbname=postgres", "dbname=tls");
    let folder = tempfile::tempdir().unwrap();
    let open = |address: &str| {
        Admin::open(Place::Postgres {
            url: address.to_string(),
            journal: folder.path().join("journal"),
        })
    };
    let taken = [
        "host=localhost".to_string(),
        "host=localhost sslmode=require".to_string(),
        format!("host=localhost sslmode=verify-full sslrootcert={certs}/ca.crt"),
        format!("host=127.0.0.1 sslmode=verify-ca sslrootcert={certs}/ca.crt"),
    ];
    for address in taken {
        let mut admin = open(&format!("{address} {tcp}")).unwrap();
        assert!(admin.keys().unwrap().is_empty(), "{address}");
        assert_eq!(n_encrypted(&server), 1, "{address}");
    }
    let port = tcp.split([' ', '=']).nth(1).unwrap();
    let url = format!("postgres://carat@localhost:{port}/tls?sslmode=verify-full&sslrootcert={certs}/ca.crt");
    assert!(open(&url).is_ok());
    let plain = open(&format!("host=localhost sslmode=disable {tcp}")).unwrap();
    assert_eq!(n_encrypted(&server), 0);
    drop(plain);
    let refused = [
        format!("host=127.0.0.1 sslmode=verify-full sslrootcert={certs}/ca.crt {tcp}"),
        format!("host=localhost sslmode=verify-full sslrootcert={certs}/other.crt {tcp}"),
        format!("host=localhost sslmode=verify-ca sslrootcert={certs}/other.crt {tcp}"),
        format!("host=localhost sslmode=verify-full {tcp}"),
        // Its socket knows no TLS.
        format!("{socket} dbname=tls sslmode=require"),
    ];
    for address in refused {
        let error = open(&address).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Server(_)), "{address}: {error:?}");
    }
    client.batch_execute("DROP DATABASE tls WITH (FORCE)").unwrap();
}
