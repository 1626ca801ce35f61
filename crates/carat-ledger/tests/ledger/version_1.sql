CREATE TABLE keys (
    id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, start TEXT NOT NULL, name TEXT NOT NULL, team TEXT,
    models TEXT NOT NULL, rpm INTEGER, tpm INTEGER, concurrency INTEGER, budget INTEGER, period TEXT,
    expires_ms INTEGER, created_ms INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX keys_in_force ON keys (name) WHERE revoked = 0;
CREATE TABLE teams (name TEXT PRIMARY KEY, budget INTEGER, period TEXT) WITHOUT ROWID;
CREATE TABLE requests (
    id BLOB PRIMARY KEY, key INTEGER NOT NULL, team TEXT, route TEXT NOT NULL, held INTEGER NOT NULL,
    started_ms INTEGER NOT NULL, is_open INTEGER NOT NULL, outcome TEXT, target TEXT, tried TEXT, input INTEGER,
    cache_read INTEGER, cache_write INTEGER, output INTEGER, reasoning INTEGER, is_counted INTEGER, cost INTEGER,
    duration_ms INTEGER, first_token_ms INTEGER
) WITHOUT ROWID;
CREATE TABLE spent (scope TEXT NOT NULL, day INTEGER NOT NULL, micros INTEGER NOT NULL, requests INTEGER NOT NULL,
    PRIMARY KEY (scope, day)) WITHOUT ROWID;
PRAGMA user_version = 1;
INSERT INTO keys (id, hash, start, name, team, models, created_ms)
    VALUES (1, x'aa9ab7af173264dc13c24c69e581744b7d70b4cb9c16ea30786a5de157261f14', 'sk-carat-old', 'alice', 'research', 'chat
openai/*', 5);
INSERT INTO keys (id, hash, start, name, team, models, created_ms, revoked)
    VALUES (2, x'009ab7af173264dc13c24c69e581744b7d70b4cb9c16ea30786a5de157261f14', 'sk-carat-gone', 'bob', 'named', '', 5, 1);
INSERT INTO teams VALUES ('research', 100, 'total');
INSERT INTO requests VALUES (x'00000000000000000000000000000001', 1, 'research', 'chat', 9, 86400000, 0, 'complete', 'p/m',
    '', 5, 0, 0, 6, 0, 1, 40, 12, 3);
INSERT INTO requests VALUES (x'00000000000000000000000000000002', 1, 'research', 'chat', 9, 86400000, 0, 'complete', 'p/m',
    '', 5, 0, 0, 6, 0, 1, 30, 12, 3);
INSERT INTO requests (id, key, team, route, held, started_ms, is_open)
    VALUES (x'00000000000000000000000000000003', 1, 'research', 'chat', 9, 86400000, 1);
INSERT INTO spent VALUES ('key:1', 1, 70, 2), ('team:research', 1, 70, 2);
