package postgres

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"

	"github.com/jackc/pgx/v5"
)

// Provision gives a migrated database the signer's key and makes one login role
// for each Role, named after the database, with passwords derived from secret.
// It is for databases that are ours alone (embedded, tests, first set-up);
// elsewhere the operator makes the roles. It returns a DSN per role and may be
// run again at every start.
func Provision(ctx context.Context, adminDSN string, signer *Signer, secret [32]byte) (map[Role]string, error) {
	conn, err := pgx.Connect(ctx, adminDSN)
	if err != nil {
		return nil, fmt.Errorf("connect to postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	ipad, opad := signer.pads()
	if _, err := conn.Exec(ctx, `
		insert into sec.context_key (kid, ipad, opad) values ($1, $2, $3)
		on conflict (kid) do update set ipad = excluded.ipad, opad = excluded.opad`, signer.kid, ipad, opad); err != nil {
		return nil, fmt.Errorf("store the context key: %w", err)
	}
	dsns := make(map[Role]string, len(Logins()))
	for _, role := range Logins() {
		dsn, err := login(ctx, conn, adminDSN, role, secret)
		if err != nil {
			return nil, err
		}
		dsns[role] = dsn
	}
	return dsns, nil
}

// login makes or renews the login role of one Role and returns its DSN.
func login(ctx context.Context, conn *pgx.Conn, adminDSN string, role Role, secret [32]byte) (string, error) {
	var database string
	if err := conn.QueryRow(ctx, "select current_database()").Scan(&database); err != nil {
		return "", fmt.Errorf("read database name: %w", err)
	}
	name := string(role) + "_" + database
	if len(name) > 63 {
		sum := sha256.Sum256([]byte(name))
		name = name[:40] + "_" + hex.EncodeToString(sum[:8])
	}
	derived, err := hkdf.Key(sha256.New, secret[:], nil, "tallystick/postgres-login\x00"+name, 24)
	if err != nil {
		return "", err
	}
	password := hex.EncodeToString(derived)
	// format(%I, %L) does the quoting: role DDL takes no parameters.
	const ddl = `
		select format(case when exists (select from pg_roles where rolname = $1)
		         then 'alter role %1$I login %3$s nosuperuser password %2$L'
		         else 'create role %1$I login %3$s nosuperuser password %2$L' end, $1::text, $2::text,
		         case when $4 then 'bypassrls' else 'nobypassrls' end),
		       format('grant %I to %I', $3::text, $1::text),
		       format('grant connect on database %I to %I', current_database(), $1::text)`
	var statements [3]string
	if err := conn.QueryRow(ctx, ddl, name, password, string(role), role.bypasses()).Scan(&statements[0], &statements[1], &statements[2]); err != nil {
		return "", fmt.Errorf("prepare role %s: %w", name, err)
	}
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			return "", fmt.Errorf("provision role %s: %w", name, err)
		}
	}
	return withUser(adminDSN, name, password)
}

// withUser is the DSN with another user and password.
func withUser(dsn, user, password string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme == "" {
		return "", fmt.Errorf("postgres DSN must be a URL, like postgres://user@host:5432/database")
	}
	u.User = url.UserPassword(user, password)
	q := u.Query()
	q.Del("user")
	q.Del("password")
	u.RawQuery = q.Encode()
	return u.String(), nil
}
