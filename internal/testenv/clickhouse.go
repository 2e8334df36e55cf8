package testenv

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	// The driver is used directly because the tests inside internal/clickhouse
	// use this package: it must not import that one.
	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/tallystick/tallystick/internal/embedded"
)

// ClickHouse returns the DSN of a fresh, empty database, which is dropped when
// the test ends.
func ClickHouse(t testing.TB) string {
	t.Helper()
	name := uniqueName()
	if dsn := os.Getenv("TALLYSTICK_TEST_CLICKHOUSE_DSN"); dsn != "" {
		return externalClickHouse(t, dsn, name)
	}
	server := start(t, &env.clickhouse, "clickhouse", func(ctx context.Context, dir string) (*embedded.ClickHouse, func() error, error) {
		lib, err := embedded.FindCHDB("")
		if err != nil {
			return nil, nil, err
		}
		c, err := embedded.StartClickHouse(ctx, embedded.ClickHouseOptions{DataDir: dir, LibPath: lib, Logger: logger()})
		return c, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
			defer cancel()
			return c.Stop(ctx)
		}, err
	})
	postSQL(t, server.DSN(""), "CREATE DATABASE "+name)
	t.Cleanup(func() { postSQL(t, server.DSN(""), "DROP DATABASE IF EXISTS "+name) })
	return server.DSN(name)
}

// postSQL executes one statement over the embedded engine's HTTP interface,
// whose DSN has the path of its unix socket.
func postSQL(t testing.TB, dsn, sql string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatalf("testenv: ClickHouse DSN: %v", err)
	}
	var dialer net.Dialer
	client := &http.Client{
		Timeout: stopTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", u.Path)
			},
		},
	}
	resp, err := client.Post("http://clickhouse/", "text/plain", strings.NewReader(sql))
	if err != nil {
		t.Fatalf("testenv: ClickHouse: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("testenv: ClickHouse: %s: %s: %s (%v)", sql, resp.Status, body, err)
	}
}

func externalClickHouse(t testing.TB, dsn, name string) string {
	t.Helper()
	exec := func(sql string) {
		if err := execClickHouse(dsn, sql); err != nil {
			t.Fatalf("testenv: ClickHouse: %s: %v", sql, err)
		}
	}
	exec("CREATE DATABASE " + name)
	t.Cleanup(func() { exec("DROP DATABASE IF EXISTS " + name) })
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal("testenv: TALLYSTICK_TEST_CLICKHOUSE_DSN is not a URL that can be parsed")
	}
	q := u.Query()
	q.Del("database")
	u.Path, u.RawQuery = "/"+name, q.Encode()
	return u.String()
}

func execClickHouse(dsn, sql string) error {
	opt, err := clickhouse.ParseDSN(dsn)
	if err != nil {
		return fmt.Errorf("TALLYSTICK_TEST_CLICKHOUSE_DSN cannot be parsed")
	}
	conn, err := clickhouse.Open(opt)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return conn.Exec(ctx, sql)
}
