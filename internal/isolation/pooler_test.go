package isolation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

const (
	pooledRequests    = 9000
	pooledTenants     = 40
	pooledClients     = 48
	serverConnections = 3
)

// TestPooled sends requests of many tenants through PgBouncer in transaction
// mode over a few server connections. Only `make isolation` runs it: it needs
// the Debian package pgbouncer.
func TestPooled(t *testing.T) {
	if !full {
		return
	}
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/pgbouncer")
	}
	if err != nil && withoutPooler {
		t.Log("NOT TESTED: PgBouncer is not installed, and TALLYSTICK_ISOLATION_WITHOUT_PGBOUNCER allows that")
		return
	}
	if err != nil {
		t.Fatal("PgBouncer is missing: apt-get install pgbouncer, or set TALLYSTICK_ISOLATION_WITHOUT_PGBOUNCER=1 to do without")
	}
	l := testenv.MigratedPostgres(t)
	super := connect(t, l.AdminDSN)
	if _, err := super.Exec(t.Context(), `insert into ledger.head (tenant_id, partition, seq, chain, key_epoch, received_at)
		select 'tenant-' || i, 0, i, sha256(convert_to('tenant-' || i, 'UTF8')), 1, now() from generate_series(0, $1) i`, pooledTenants-1); err != nil {
		t.Fatal(err)
	}
	dsn := startPgBouncer(t, program, l.DSNs[postgres.RoleApp])
	if n := bareSettingsMixedUp(t, dsn); n == 0 {
		t.Error("a bare session setting was never mixed up: the pool shows nothing")
	} else {
		t.Logf("with a bare session setting %d of %d requests would have been another tenant's", n, bareRequests)
	}
	db, err := postgres.Open(t.Context(), dsn, l.Signer, postgres.Options{MaxConns: pooledClients, Role: postgres.RoleApp})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var done, wrong atomic.Int64
	g, ctx := errgroup.WithContext(t.Context())
	for client := range pooledClients {
		g.Go(func() error {
			random := rand.New(rand.NewPCG(1, uint64(client)))
			for range pooledRequests / pooledClients {
				bad, err := pooledRequest(ctx, db, random)
				if err != nil {
					return err
				}
				done.Add(1)
				if bad {
					wrong.Add(1)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	var backends int
	if err := super.QueryRow(t.Context(), "select count(*) from pg_stat_activity where usename = $1", loginOf(t, dsn)).Scan(&backends); err != nil || backends > serverConnections {
		t.Errorf("%d server connections, want at most %d: %v", backends, serverConnections, err)
	}
	if wrong.Load() > 0 {
		t.Errorf("%d of %d requests were answered wrongly", wrong.Load(), done.Load())
	}
	count(func() { counts.pooled, counts.wrong = int(done.Load()), int(wrong.Load()) })
}

// pooledRequest is one request of a random tenant, of a random kind, and
// reports whether it was answered with anything but the tenant's own row.
func pooledRequest(ctx context.Context, db *postgres.DB, random *rand.Rand) (wrong bool, err error) {
	i := random.IntN(pooledTenants)
	id := tenant.ID(fmt.Sprintf("tenant-%d", i))
	all := func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, "select tenant_id, seq from ledger.head")
		if err != nil {
			return err
		}
		n := 0
		var who string
		var seq int
		_, err = pgx.ForEachRow(rows, []any{&who, &seq}, func() error {
			n++
			wrong = wrong || who != string(id) || seq != i
			return nil
		})
		wrong = wrong || err == nil && n != 1
		return err
	}
	switch kind := random.IntN(10); kind {
	case 0: // a request that forgot its tenant
		err = db.Tx(ctx, func(tx postgres.Tx) error { _, err := tx.Exec(ctx, "select from ledger.head"); return err })
		return postgres.SQLState(err) != "42501", notRefused(err)
	case 1: // one that fails in the middle
		err = db.InTenant(ctx, id, func(tx postgres.Tx) error {
			if err := all(tx); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "select 1 / 0")
			return err
		})
		if postgres.SQLState(err) == "22012" {
			err = nil
		}
	case 2: // one whose code gives up
		given := errors.New("given up")
		if err = db.InTenant(ctx, id, func(tx postgres.Tx) error { return errors.Join(all(tx), given) }); errors.Is(err, given) && postgres.SQLState(err) == "" {
			err = nil
		}
	case 3: // one that leaves another tenant's name in every setting that it can
		other := fmt.Sprintf("tenant-%d", (i+1)%pooledTenants)
		err = db.InTenant(ctx, id, func(tx postgres.Tx) error {
			if _, err := tx.Exec(ctx, "select set_config('app.tenant_id', $1, false)", other); err != nil {
				return err
			}
			return all(tx)
		})
	default:
		err = db.InTenant(ctx, id, func(tx postgres.Tx) error {
			if err := all(tx); err != nil {
				return err
			}
			return all(tx)
		})
	}
	return wrong, err
}

// notRefused is the error when it is not the database's refusal.
func notRefused(err error) error {
	if err == nil || postgres.SQLState(err) == "42501" {
		return nil
	}
	return err
}

const bareRequests = 500

// bareSettingsMixedUp is the positive control: clients that set a session's
// setting and read it in the next transaction find another client's.
func bareSettingsMixedUp(t *testing.T, dsn string) (mixed int64) {
	t.Helper()
	var n atomic.Int64
	g, ctx := errgroup.WithContext(t.Context())
	for client := range 10 {
		conn := connect(t, dsn)
		g.Go(func() error {
			name := strconv.Itoa(client)
			for range bareRequests / 10 {
				var got string
				if _, err := conn.Exec(ctx, "select set_config('app.tenant_id', $1, false)", name); err != nil {
					return err
				}
				if err := conn.QueryRow(ctx, "select coalesce(current_setting('app.tenant_id', true), '')").Scan(&got); err != nil {
					return err
				}
				if got != name {
					n.Add(1)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return n.Load()
}

func loginOf(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return u.User.Username()
}

// startPgBouncer starts a pooler before the server of the DSN, on a port of its
// own, and returns the DSN through it. It runs as the user that may enter the
// server's socket, never as root, which it refuses.
func startPgBouncer(t *testing.T, program, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	bridge := bridgeTo(t, u)
	dir, err := os.MkdirTemp("", "tallystick-pgbouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listen := freePort(t)
	password, _ := u.User.Password()
	files := map[string]string{
		"users": fmt.Sprintf("%q %q\n", u.User.Username(), password),
		"ini": fmt.Sprintf("[databases]\n* = host=127.0.0.1 port=%d\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\n"+
			"auth_type = scram-sha-256\nauth_file = %s\npool_mode = transaction\ndefault_pool_size = %d\nreserve_pool_size = 0\nmax_client_conn = 200\n"+
			"ignore_startup_parameters = extra_float_digits\nserver_reset_query =\nlog_connections = 0\nlog_disconnections = 0\n",
			bridge, listen, filepath.Join(dir, "users"), serverConnections),
	}
	cmd := exec.Command(program, filepath.Join(dir, "ini"))
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = nobodyUser(t)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(file, []byte(text), 0o600), os.Chown(file, uid, gid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has nothing to save
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(out.String())
		}
	})
	q := url.Values{"sslmode": {"disable"}, "default_query_exec_mode": {"exec"}}
	through := url.URL{Scheme: "postgres", User: u.User, Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(listen)), Path: u.Path, RawQuery: q.Encode()}
	waitFor(t, through.String())
	return through.String()
}

func nobodyUser(t *testing.T) (uid, gid int) {
	t.Helper()
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, uerr := strconv.Atoi(nobody.Uid)
	gid, gerr := strconv.Atoi(nobody.Gid)
	if err := errors.Join(uerr, gerr); err != nil {
		t.Fatal(err)
	}
	return uid, gid
}

// bridgeTo listens on a port and passes everything on to the server of the DSN.
// The embedded server's socket is in a folder that only we can enter, and
// PgBouncer runs as another user when we are root.
func bridgeTo(t *testing.T, u *url.URL) (port int) {
	t.Helper()
	network, address := "tcp", u.Host
	if dir := u.Query().Get("host"); strings.HasPrefix(dir, "/") {
		number := u.Query().Get("port")
		if number == "" {
			number = "5432"
		}
		network, address = "unix", filepath.Join(dir, ".s.PGSQL."+number)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed
			}
			server, err := net.Dial(network, address)
			if err != nil {
				client.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1]) // ends when either side does
					client.Close()
					server.Close()
				}()
			}
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// waitFor asks until the pooler answers; every refusal takes it a moment.
func waitFor(t *testing.T, dsn string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, dsn)
		if err == nil {
			_ = conn.Close(ctx)
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("PgBouncer does not answer: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
