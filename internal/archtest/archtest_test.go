package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// module loads the real source tree. It only opens files below the module's
// root, so that go test's cache knows when to run these tests again.
func module(t *testing.T) (*Tree, string) {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := Load(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Go) < 20 {
		t.Fatalf("only %d Go files found: the walk is wrong", len(tree.Go))
	}
	return tree, root
}

func report(t *testing.T, found []Violation) {
	t.Helper()
	for _, v := range found {
		t.Errorf("%s", v)
	}
}

func TestImports(t *testing.T) {
	tree, _ := module(t)
	report(t, tree.Imports())
}

func TestSource(t *testing.T) {
	tree, _ := module(t)
	report(t, tree.Source())
}

func TestText(t *testing.T) {
	tree, root := module(t)
	// The parts are joined here so that this file does not name them.
	places := []string{root, "/" + "root/", "/" + "work/", "/tmp" + "/team"}
	if home, err := os.UserHomeDir(); err == nil && len(home) > 5 {
		places = append(places, home+"/")
	}
	report(t, tree.Text(places))
}

func TestDependencies(t *testing.T) {
	tree, _ := module(t)
	found, err := tree.Dependencies()
	if err != nil {
		t.Fatal(err)
	}
	report(t, found)
}

func TestLocks(t *testing.T) {
	tree, _ := module(t)
	found, err := tree.Locks()
	if err != nil {
		t.Fatal(err)
	}
	report(t, found)
}

// small makes a tree of path and content pairs.
func small(t *testing.T, files map[string]string) *Tree {
	t.Helper()
	fsys := fstest.MapFS{}
	for name, content := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(content), Mode: fs.FileMode(0o644)}
	}
	tree, err := Load(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// TestForbiddenImportsAreFound is the positive control of TestImports: one row
// per rule, each with an import that must be refused or allowed.
func TestForbiddenImportsAreFound(t *testing.T) {
	own := func(p string) string { return Module + "/" + p }
	for _, c := range []struct {
		name    string
		file    string
		imports string
		want    string // part of the reason; "" is allowed
	}{
		{"later stage", "ingest/a.go", own("ledger/chain"), "imports point the other way"},
		{"earlier stage's inside", "ledger/a.go", own("ingest"), "only ingest/event"},
		{"earlier stage's inside, in a test", "ledger/a_test.go", own("ingest"), "only ingest/event"},
		{"earlier stage's hand-over", "ledger/a.go", own("ingest/event"), ""},
		{"within a stage", "ledger/a.go", own("ledger/pgstore"), ""},
		{"hand-over imports earlier hand-over", "ledger/chain/a.go", own("ingest/event"), ""},
		{"hand-over imports tokens", "ingest/event/a.go", own("internal/tokens"), ""},
		{"hand-over imports its stage", "ledger/chain/a.go", own("ledger"), "stays pure"},
		{"hand-over imports pricing", "ledger/chain/a.go", own("internal/pricing"), "stays pure"},
		{"hand-over imports a library", "ingest/event/a.go", "google.golang.org/protobuf/proto", "stays pure"},
		{"hand-over imports the standard library", "ingest/event/a.go", "crypto/sha256", ""},
		{"generated types", "processors/finding/a.go", own("api/gen/tallystick/v1"), ""},
		{"internal imports a stage", "internal/load/a.go", own("ingest/event"), "never knows them"},
		{"internal imports generated types", "internal/load/a.go", own("api/gen/tallystick/v1"), ""},
		{"migrations import a stage", "migrations/a.go", own("ledger"), "never knows them"},
		{"franz-go abroad", "ingest/a.go", "github.com/twmb/franz-go/pkg/kgo", "lives in internal/kafka"},
		{"franz-go at home", "internal/kafka/a.go", "github.com/twmb/franz-go/pkg/kgo", ""},
		{"pgx abroad", "processors/a.go", "github.com/jackc/pgx/v5", "signed tenant context"},
		{"pgx in a benchmark's baseline", "cmd/tallystick/bench_x.go", "github.com/jackc/pgx/v5", ""},
		{"franz-go in a benchmark's baseline", "cmd/tallystick/bench_x.go", "github.com/twmb/franz-go/pkg/kgo", ""},
		{"clickhouse-go in a benchmark's baseline", "cmd/tallystick/bench_x.go", "github.com/ClickHouse/clickhouse-go/v2", ""},
		{"clickhouse-go elsewhere in cmd", "cmd/tallystick/up.go", "github.com/ClickHouse/clickhouse-go/v2", "tenant filter"},
		{"pgx elsewhere in cmd", "cmd/tallystick/up.go", "github.com/jackc/pgx/v5", "signed tenant context"},
		{"pgx in embedded", "internal/embedded/a.go", "github.com/jackc/pgx/v5/pgconn", "signed tenant context"},
		{"pgx in embedded's tests", "internal/embedded/a_test.go", "github.com/jackc/pgx/v5/pgconn", ""},
		{"clickhouse-go abroad", "api/a.go", "github.com/ClickHouse/clickhouse-go/v2", "tenant filter"},
		{"clickhouse-go's wire form in embedded", "internal/embedded/chdb/a.go", "github.com/ClickHouse/clickhouse-go/v2/lib/proto", ""},
		{"clickhouse-go in embedded", "internal/embedded/chdb/a.go", "github.com/ClickHouse/clickhouse-go/v2", "tenant filter"},
		{"AWS abroad", "ledger/a.go", "github.com/aws/aws-sdk-go-v2/config", "behind the interface"},
		{"AWS at home", "internal/keyring/awskms/a.go", "github.com/aws/aws-sdk-go-v2/config", ""},
		{"gonum near money", "ledger/a.go", "gonum.org/v1/gonum/stat", "floats"},
		{"gateway abroad", "ingest/a.go", "github.com/grpc-ecosystem/grpc-gateway/v2/runtime", "the API's edge"},
		{"cmd wires", "cmd/tallystick/a.go", own("ledger/pgstore"), ""},
		{"cmd imported", "internal/load/a.go", own("cmd/tallystick"), "nothing is built on the wiring"},
		{"testenv in the program", "internal/kafka/a.go", own("internal/testenv"), "tests only"},
		{"testenv in a test", "internal/kafka/a_test.go", own("internal/testenv"), ""},
		{"oracle imports pricing", "internal/oracle/a.go", own("internal/pricing"), "agrees with its mistakes"},
		{"oracle imports money", "internal/oracle/a.go", own("internal/money"), "agrees with its mistakes"},
		{"oracle imports a library", "internal/oracle/a.go", "github.com/shopspring/decimal", "agrees with its mistakes"},
		{"oracle imports tokens", "internal/oracle/a.go", own("internal/tokens"), ""},
		{"emit imports the ledger", "cmd/tallystick/emit_load.go", own("ledger"), "agrees with its mistakes"},
		{"another command imports the ledger", "cmd/tallystick/up.go", own("ledger"), ""},
		{"verifier imports the store", "ledger/verify/a.go", own("ledger/pgstore"), "shares no code"},
		{"verifier imports the format's code", "ledger/verify/a.go", own("ledger/chain"), "shares no code"},
		{"verifier's test compares", "ledger/verify/a_test.go", own("ledger/chain"), ""},
		{"money imports a library", "internal/money/a.go", "golang.org/x/sys/unix", "everything imports it"},
		{"broken hash", "ledger/a.go", "crypto/sha1", "it is broken"},
		{"guessable numbers", "internal/authn/a.go", "math/rand/v2", "lives in internal/load"},
		{"seeded load", "internal/load/a.go", "math/rand/v2", ""},
		{"child process", "api/a.go", "os/exec", "embedded engines"},
		{"child process in a test", "api/a_test.go", "os/exec", ""},
		{"profiler", "cmd/tallystick/a.go", "net/http/pprof", "a door"},
		{"generated types import us", "api/gen/tallystick/v1/a.go", own("internal/money"), "a leaf"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := small(t, map[string]string{c.file: "package a\nimport _ \"" + c.imports + "\"\n"})
			found := tree.Imports()
			switch {
			case c.want == "" && len(found) > 0:
				t.Errorf("refused: %v", found)
			case c.want != "" && (len(found) != 1 || !strings.Contains(found[0].Reason, c.want)):
				t.Errorf("found %v, want one violation because %q", found, c.want)
			}
		})
	}
	if found := small(t, map[string]string{"utils/a.go": "package utils\n"}).Imports(); len(found) != 1 {
		t.Errorf("a package outside the layout: %v", found)
	}
}

// TestBadSourceIsFound is the positive control of TestSource.
func TestBadSourceIsFound(t *testing.T) {
	const head = "// Package p is documented.\npackage p\n"
	for _, c := range []struct{ name, file, src, want string }{
		{"float type", "ledger/a.go", head + "var x float64\n", "uses float64"},
		{"float literal", "internal/pricing/a.go", head + "var x = 1.5\n", "uses 1.5"},
		{"whole number", "internal/pricing/a.go", head + "const x = 1e12\n", ""},
		{"float parser", "internal/money/a.go", head + "import \"strconv\"\nvar x, _ = strconv.ParseFloat(\"1\", 64)\n", "uses ParseFloat"},
		{"float elsewhere", "processors/a.go", head + "var x float64\n", ""},
		{"clock", "ledger/chain/a.go", head + "import \"time\"\nvar x = time.Now()\n", "uses time.Now"},
		{"clock under another name", "ledger/chain/a.go", head + "import c \"time\"\nvar x = c.Now()\n", "uses c.Now"},
		{"duration in a pure package", "ledger/chain/a.go", head + "import \"time\"\nvar x = time.Second\n", ""},
		{"clock in a pure file", "ledger/core.go", head + "import \"time\"\nvar x = time.Since\n", "uses time.Since"},
		{"pure file lost", "ledger/a.go", head, "is not there"},
		{"clock elsewhere", "ledger/a.go", head + "import \"time\"\nvar x = time.Since\n", ""},
		{"randomness", "ledger/chain/a.go", head + "import \"math/rand/v2\"\nvar x = rand.Int()\n", "imports math/rand/v2"},
		{"no comment", "processors/a.go", "package p\n", "no package comment"},
		{"few documented", "processors/a.go", head + "var A int\nvar B int\n", "documents 0 of 2"},
		{"group comment", "processors/a.go", head + "// A and B are.\nvar (\n A int\n B int\n)\n", ""},
		{"long file", "ledger/a.go", head + strings.Repeat("\n", 601), "lines"},
		{"Sprintf", "ledger/a.go", head + "import \"fmt\"\nfunc f(d db, t string) { d.Exec(fmt.Sprintf(\"drop %s\", t)) }\n", "puts a statement together"},
		{"joined", "ledger/a.go", head + "func f(d db, t string) { d.Query(ctx, \"select 1 from \" + t) }\n", "puts a statement together"},
		{"joined constants", "ledger/a.go", head + "const t = \"x\"\nfunc f(d db) { d.Query(ctx, \"select 1 from \" + t) }\n", ""},
		{"sum of numbers", "ledger/a.go", head + "func f(d db, n int) { d.Query(ctx, q, n + 1) }\n", ""},
		{"skipped test", "ledger/a_test.go", "package p\nfunc T(t *testing.T) { t.Skip() }\n", "t.Skip"},
		{"short test", "ledger/a_test.go", "package p\nfunc T(t *testing.T) { if testing.Short() { return } }\n", "testing.Short"},
		{"generated", "api/gen/v1/a.go", "package p\nvar A float64\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{"ledger/core.go": head, "ledger/builder.go": head}
			if c.name == "pure file lost" {
				delete(files, "ledger/core.go")
			}
			files[c.file] = c.src
			found := small(t, files).Source()
			switch {
			case c.want == "" && len(found) > 0:
				t.Errorf("refused: %v", found)
			case c.want != "" && !slices.ContainsFunc(found, func(v Violation) bool { return strings.Contains(v.What, c.want) }):
				t.Errorf("found %v, want %q", found, c.want)
			}
		})
	}
}

// TestBadTextIsFound is the positive control of TestText, and of the walk that
// leaves out what version control ignores.
func TestBadTextIsFound(t *testing.T) {
	address := "https://" + "registry.example/x"
	tree := small(t, map[string]string{
		".gitignore":                  "/out/\nnode_modules/\n*.log\n",
		"web/.gitignore":              "/cache/\n",
		"web/package-lock.json":       "{\n\"resolved\": \"x\"\n}",
		"docs/a.md":                   "see " + address + "\n",
		"docs/b.md":                   "lives in /machine/project\nor in /machine-room\n",
		"docs/c.bin":                  "\x00 /machine/project",
		"out/x.md":                    "/machine/project",
		"web/node_modules/p/x.md":     "/machine/project",
		"web/cache/x.md":              "/machine/project",
		"web/other/cache/x.md":        "/machine/project",
		"x.log":                       "/machine/project",
		"docs/fine.md":                "https://example.com/registry and https://proxy.example.com/v1",
		"deploy/tools/go.mod":         "module tools\n",
		"deploy/tools/not/our/own.go": "this is not Go",
	})
	var got []string
	for _, v := range tree.Text([]string{"/machine/"}) {
		got = append(got, v.Where)
	}
	want := []string{"docs/a.md:1", "docs/b.md:1", "web/other/cache/x.md:1", "web/package-lock.json:2"}
	if !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// TestBadDependenciesAreFound is the positive control of TestDependencies and
// TestLocks.
func TestBadDependenciesAreFound(t *testing.T) {
	tree := small(t, map[string]string{
		"go.mod": `module m
require a.example/used v1.0.0
require (
	a.example/used/v2/sub v1.0.0 // indirect
	a.example/unused v1.0.0
	a.example/undocumented v1.0.0
	a.example/transitive v1.0.0 // indirect
)`,
		"internal/x/x.go":       "package x\nimport _ \"a.example/used/p\"\nimport _ \"a.example/used/v2/sub\"\nimport _ \"a.example/undocumented\"\n",
		"docs/dependencies.md":  "| module | why |\n|---|---|\n| `a.example/used`, `left` | it is used |\n| a.example/used/v2/sub | yes |\n| a.example/undocumented | |\n| a.example/transitive | no |\n",
		"web/package.json":      `{"dependencies": {"left": "1"}, "devDependencies": {"right": "1"}}`,
		"web/package-lock.json": `{"packages": {"": {}, "node_modules/left": {"integrity": "sha512-x"}, "node_modules/right": {"integrity": "sha1-x"}}}`,
	})
	found, err := tree.Dependencies()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, v := range found {
		all = append(all, v.Where+" "+v.What)
	}
	for _, want := range []string{
		"go.mod a.example/used/v2/sub is marked indirect",
		"go.mod a.example/unused is a direct requirement",
		"docs/dependencies.md a.example/undocumented is imported",
		"docs/dependencies.md a.example/transitive is listed",
		"docs/dependencies.md right of web/package.json",
	} {
		if !slices.ContainsFunc(all, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("%q was not found", want)
		}
	}
	if len(all) != 5 {
		t.Errorf("found %d, want 5:\n%s", len(all), strings.Join(all, "\n"))
	}
	locks, err := tree.Locks()
	if err != nil || len(locks) != 1 || !strings.Contains(locks[0].What, "node_modules/right") {
		t.Errorf("locks: %v, %v", locks, err)
	}
}
