package archtest

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// stages in the order in which data flows; imports point the other way.
var stages = []string{"ingest", "ledger", "processors", "analytics", "api"}

// handOver is the ★ package of a stage: what later stages may know of it.
var handOver = map[string]string{
	"ingest":     "ingest/event",
	"ledger":     "ledger/chain",
	"processors": "processors/finding",
	"analytics":  "analytics/report",
}

// handOverNeeds is what a ★ package may import beside earlier ★ packages,
// api/gen and the standard library.
var handOverNeeds = []string{"internal/money", "internal/tenant", "internal/invariant", "internal/tokens"}

// topFolders are the folders that hold Go packages.
var topFolders = append([]string{"cmd", "internal", "migrations"}, stages...)

// driver is a library with named homes.
type driver struct {
	module string   // import path prefix
	homes  []string // packages, "/…" for those below too
	tests  []string // further packages whose tests may use it
	files  string   // path.Match of further files that may
	reason string
}

var drivers = []driver{
	{
		"github.com/twmb/franz-go", []string{"internal/kafka", "internal/embedded"}, nil,
		"cmd/tallystick/bench*.go", // the poll loop that our readers are measured against
		"acks, idempotence and partitioning are decided once, in internal/kafka",
	},
	{
		"github.com/jackc/pgx", []string{"internal/postgres", "ledger/pgstore", "migrations", "internal/testenv"},
		[]string{"internal/embedded", "internal/isolation", "internal/audit", "internal/authn", "internal/secrets", "ledger/…", "processors/…", "analytics/…", "api"}, // as superuser, to look at what was written
		"cmd/tallystick/bench*.go", // the COPY that the ledger is measured against
		"every way to Postgres sets the signed tenant context; a second way would not",
	},
	{
		"github.com/ClickHouse/clickhouse-go/v2/lib", []string{"internal/clickhouse", "analytics/…", "migrations", "internal/embedded/…", "internal/testenv"}, nil, "",
		"the wire form of blocks is needed only where queries and the embedded engine are",
	},
	{
		"github.com/ClickHouse/clickhouse-go", []string{"internal/clickhouse", "analytics/…", "migrations", "internal/testenv"},
		[]string{"internal/embedded"},
		"cmd/tallystick/bench*.go", // the row append that our inserts are measured against
		"the tenant filter is forced on every query in these packages",
	},
	{
		"github.com/ClickHouse/ch-go", []string{"internal/clickhouse", "analytics/…", "internal/embedded/…"}, nil, "",
		"the wire form of blocks is needed only where queries and the embedded engine are",
	},
	{
		"github.com/ebitengine/purego", []string{"internal/embedded/…", "internal/gpu/nvml"}, nil, "",
		"foreign code is loaded in a child process, or in the GPU agent, which holds nothing but samples",
	},
	{
		"github.com/aws/aws-sdk-go-v2", []string{"internal/keyring/awskms", "ingest/bedrock/awslogs", "internal/sigv4"}, nil, "",
		"a cloud's SDK stays behind the interface that needs it",
	},
	{
		"golang.org/x/oauth2", []string{"internal/keyring/gcpkms"}, nil, "",
		"a cloud's SDK stays behind the interface that needs it",
	},
	{
		"gonum.org/v1/gonum", []string{"processors/…", "analytics/…"}, nil, "",
		"it computes with floats, which never touch money",
	},
	{
		"github.com/grpc-ecosystem/grpc-gateway", []string{"api/…"}, nil, "",
		"the gateway is the API's edge; ingest has its own, faster one",
	},
	{
		"github.com/knadh/koanf", []string{"internal/config"}, nil, "",
		"settings are read and checked in one place",
	},
	{
		"github.com/spf13/cobra", []string{"cmd/…"}, nil, "",
		"commands are wired in cmd; packages take values",
	},
}

// neverImports are single forbidden edges.
type edge struct {
	from, to []string // packages, "/…" for those below too
	files    string   // path.Match of the file's base name; "" is all
	reason   string
}

const verifierReason = "the verifier shares no code with the writer but the format's document, or it would repeat its mistakes"

const oracleReason = "an oracle that shares code with what it judges agrees with its mistakes"

var neverImports = []edge{
	{[]string{"internal/oracle", "internal/load"}, []string{"internal/pricing/…", "ledger/…", "internal/money"}, "", oracleReason},
	{[]string{"cmd/…"}, []string{"internal/pricing/…", "ledger/…", "internal/money"}, "emit*.go", oracleReason},
	{[]string{"ledger/verify/…"}, []string{"ledger", "ledger/chain", "ledger/pgstore", "ingest/event", "internal/pricing/…"}, "", verifierReason},
	{[]string{"ledger/verify/…", "cmd/tallystick-verify/…"}, []string{"ledger/evidence", "ledger/checkpoint/…", "internal/…", "api/…"}, "", verifierReason},
	{[]string{"ledger/pgread"}, []string{"ledger", "ledger/chain", "ledger/pgstore"}, "", verifierReason},
}

// onlyImports are packages whose whole list of own imports is given.
var onlyImports = []struct {
	pkg    string
	may    []string
	std    bool // and nothing outside the standard library
	reason string
}{
	{"ledger/verify/…", []string{"ledger/verify/…", "golang.org/x/mod/sumdb/note", "golang.org/x/mod/sumdb/tlog"}, true, verifierReason},
	{"cmd/tallystick-verify/…", []string{"ledger/verify/…", "cmd/tallystick-verify/…"}, true, verifierReason},
	{"internal/oracle", []string{"api/gen/…", "internal/tenant", "internal/tokens"}, true, oracleReason},
	{"internal/money", []string{"internal/invariant"}, true, "everything imports it"},
	{"internal/tenant", []string{"internal/invariant"}, true, "everything imports it"},
	{"internal/tokens", []string{"internal/invariant"}, true, "everything imports it"},
	{"internal/invariant", nil, true, "everything imports it"},
	{"api/gen/…", []string{"api/gen/…"}, false, "generated types are a leaf"},
}

// Imports checks every import of the module against the rules above.
func (t *Tree) Imports() []Violation {
	var found []Violation
	for _, f := range t.Go {
		for _, to := range f.Imports {
			if to == f.Package {
				continue // an external test of its own package
			}
			if reason := forbidden(f, to); reason != "" {
				found = append(found, Violation{f.Path, "imports " + to, reason})
			}
		}
	}
	for _, name := range t.packages() {
		if top, _, _ := strings.Cut(name, "/"); !slices.Contains(topFolders, top) {
			found = append(found, Violation{name, "is a package outside the layout",
				"a stranger guesses a package from its path; stages, cmd, internal and migrations are the paths there are"})
		}
	}
	return found
}

// forbidden says why the file may not import to, or nothing.
func forbidden(f *File, to string) (reason string) {
	for _, rule := range []func(*File, string) string{
		stageRule, handOverRule, internalRule, driverRule, cmdRule, testenvRule, edgeRules, dangerousRule,
	} {
		if reason := rule(f, to); reason != "" {
			return reason
		}
	}
	return ""
}

// stageOf is the stage that a package belongs to and its place in the order.
func stageOf(pkg string) (name string, place int) {
	top, _, _ := strings.Cut(pkg, "/")
	if within(pkg, []string{"api/gen/…"}) {
		return "", -1 // a leaf that anyone may import
	}
	return top, slices.Index(stages, top)
}

// stageRule is rule 1: from an earlier stage only its ★ package, from a later
// one nothing.
func stageRule(f *File, to string) string {
	from, i := stageOf(f.Package)
	target, j := stageOf(to)
	switch {
	case i < 0 || j < 0 || i == j:
		return ""
	case j > i:
		return fmt.Sprintf("data flows from %s to %s, and imports point the other way; declare the interface here", from, target)
	case to != handOver[target]:
		return fmt.Sprintf("stages meet in topics and tables; of %s only %s is for later stages", target, handOver[target])
	}
	return ""
}

// handOverRule is rule 2.
func handOverRule(f *File, to string) string {
	stage, i := stageOf(f.Package)
	if i < 0 || f.Package != handOver[stage] || f.Test {
		return ""
	}
	earlier := slices.ContainsFunc(stages[:i], func(s string) bool { return handOver[s] == to })
	if earlier || isStd(to) || slices.Contains(handOverNeeds, to) || within(to, []string{"api/gen/…"}) {
		return ""
	}
	return fmt.Sprintf("%s is handed from stage to stage and stays pure: earlier hand-over packages, %s and the standard library",
		f.Package, strings.Join(handOverNeeds, ", "))
}

// internalRule is rule 3, for migrations too.
func internalRule(f *File, to string) string {
	_, stage := stageOf(to)
	if stage < 0 || !within(f.Package, []string{"internal/…", "migrations/…"}) {
		return ""
	}
	return "what is below the stages never knows them; take an interface or a value"
}

// driverRule is rule 4. The first driver that fits decides.
func driverRule(f *File, to string) string {
	for _, d := range drivers {
		if to != d.module && !strings.HasPrefix(to, d.module+"/") {
			continue
		}
		named, err := path.Match(d.files, f.Path)
		if within(f.Package, d.homes) || (f.Test && within(f.Package, d.tests)) || (err == nil && named) {
			return ""
		}
		return fmt.Sprintf("%s lives in %s: %s", d.module, strings.Join(d.homes, ", "), d.reason)
	}
	return ""
}

// cmdRule is rule 5's other side: what wires is wired by nobody.
func cmdRule(f *File, to string) string {
	if within(to, []string{"cmd/…"}) && !within(f.Package, []string{"cmd/…"}) {
		return "cmd wires the stages; nothing is built on the wiring"
	}
	return ""
}

func testenvRule(f *File, to string) string {
	if (to == "internal/testenv" || to == "internal/archtest") && !f.Test {
		return "it exists for tests only"
	}
	return ""
}

func edgeRules(f *File, to string) string {
	if f.Test {
		return "" // a test may well compare the two sides
	}
	for _, e := range neverImports {
		base := path.Base(f.Path)
		named, err := path.Match(e.files, base)
		if within(f.Package, e.from) && within(to, e.to) && (e.files == "" || (err == nil && named)) {
			return e.reason
		}
	}
	for _, o := range onlyImports {
		if !within(f.Package, []string{o.pkg}) || isStd(to) || within(to, o.may) || (!o.std && !isOwn(to)) {
			continue
		}
		return fmt.Sprintf("%s imports nothing but the standard library and %v: %s", o.pkg, o.may, o.reason)
	}
	return ""
}

// within reports whether pkg is one of list; "a/…" means a and all below it.
func within(pkg string, list []string) bool {
	return slices.ContainsFunc(list, func(l string) bool {
		root, below := strings.CutSuffix(l, "/…")
		return pkg == root || (below && strings.HasPrefix(pkg, root+"/"))
	})
}

// isOwn reports whether a shortened import path is of this module.
func isOwn(to string) bool {
	top, _, _ := strings.Cut(to, "/")
	return slices.Contains(topFolders, top)
}

// isStd reports whether an import path is of the standard library, whose first
// part has no dot.
func isStd(to string) bool {
	top, _, _ := strings.Cut(to, "/")
	return !isOwn(to) && !strings.Contains(top, ".")
}
