package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strings"
)

const (
	maxFileLines       = 600
	minDocumentedShare = 0.8
)

// generated packages are written by tools; only import rules hold there.
var generated = []string{"api/gen/…"}

// pure packages compute ledger entries from records alone.
var purePackages = []string{"ledger/chain", "internal/pricing", "internal/money"}

// pureFiles compute ledger entries outside purePackages. One that is missing is
// a violation too: the rule must follow the file.
var pureFiles = []string{"ledger/core.go", "ledger/builder.go"}

// moneyPackages never compute with floats.
var moneyPackages = []string{"internal/money", "internal/pricing", "ledger/…"}

// impure is what a pure file may not name.
var impure = map[string][]string{
	"time":         {"Now", "Since", "Until", "Sleep", "After", "Tick", "NewTimer", "NewTicker"},
	"math/rand":    nil,
	"math/rand/v2": nil,
	"crypto/rand":  nil,
	"os":           nil,
	"net":          nil,
}

// Source checks what stands inside Go files.
func (t *Tree) Source() []Violation {
	var found []Violation
	for _, f := range t.Go {
		if within(f.Package, generated) {
			continue
		}
		if !f.Test {
			found = append(found, t.length(f)...)
			found = append(found, t.floats(f)...)
			found = append(found, t.impurity(f)...)
			found = append(found, t.joinedSQL(f)...)
		} else {
			found = append(found, t.skips(f)...)
		}
	}
	for _, name := range pureFiles {
		if slices.Contains(t.packages(), path.Dir(name)) && !slices.Contains(t.Files, name) {
			found = append(found, Violation{name, "is not there", "pureFiles in internal/archtest names it: say where its code went"})
		}
	}
	return append(found, t.comments()...)
}

func (t *Tree) length(f *File) []Violation {
	if n := t.fset.File(f.AST.Pos()).LineCount(); n > maxFileLines {
		return []Violation{{f.Path, fmt.Sprintf("has %d lines", n), "two named files read better than one of more than 600 lines"}}
	}
	return nil
}

// floats finds float types, literals and parsers near money.
func (t *Tree) floats(f *File) (found []Violation) {
	if !within(f.Package, moneyPackages) {
		return nil
	}
	ast.Inspect(f.AST, func(n ast.Node) bool {
		what := ""
		switch n := n.(type) {
		case *ast.Ident:
			if n.Name == "float32" || n.Name == "float64" || n.Name == "ParseFloat" {
				what = n.Name
			}
		case *ast.BasicLit:
			if n.Kind == token.FLOAT && !wholeNumber(n) {
				what = n.Value
			}
		}
		if what != "" {
			found = append(found, Violation{t.at(n.Pos()), "uses " + what, "money is an int64 of 1e-12 USD; no float ever touches it"})
		}
		return true
	})
	return found
}

// wholeNumber reports whether a literal such as 1e12 is an exact integer, which
// the compiler then treats as one.
func wholeNumber(n *ast.BasicLit) bool {
	return constant.ToInt(constant.MakeFromLiteral(n.Value, n.Kind, 0)).Kind() == constant.Int
}

// impurity finds clocks, randomness and I/O where entries are computed.
func (t *Tree) impurity(f *File) (found []Violation) {
	if !slices.Contains(purePackages, f.Package) && !slices.Contains(pureFiles, f.Path) {
		return nil
	}
	const reason = "an entry is a pure function of the Kafka record and earlier ledger state, so that a replay gives the same hashes"
	names := importNames(f)
	for imported, of := range names {
		if banned, listed := impure[of]; listed && banned == nil {
			found = append(found, Violation{f.Path, "imports " + of + " as " + imported, reason})
		}
	}
	ast.Inspect(f.AST, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(impure[names[x.Name]], sel.Sel.Name) {
			found = append(found, Violation{t.at(n.Pos()), "uses " + x.Name + "." + sel.Sel.Name, reason})
		}
		return true
	})
	return found
}

// importNames maps the local names of a file's imports to import paths.
func importNames(f *File) map[string]string {
	names := map[string]string{}
	for i, spec := range f.AST.Imports {
		name := path.Base(f.Imports[i])
		if strings.HasPrefix(name, "v") && strings.Trim(name[1:], "0123456789") == "" {
			name = path.Base(path.Dir(f.Imports[i]))
		}
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = f.Imports[i]
	}
	return names
}

// runsSQL are the methods whose text a database executes.
var runsSQL = []string{
	"Exec", "ExecContext", "Query", "QueryContext", "QueryRow", "QueryRowContext",
	"Queue", "Prepare", "PrepareContext", "PrepareBatch", "Select", "AsyncInsert",
}

// joinedSQL finds statements put together from parts that are not constants of
// the same file: the cheap sign of SQL that data can change.
func (t *Tree) joinedSQL(f *File) (found []Violation) {
	consts := constNames(f.AST)
	ast.Inspect(f.AST, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !slices.Contains(runsSQL, sel.Sel.Name) {
			return true
		}
		for _, arg := range call.Args {
			if joined(arg, consts) {
				found = append(found, Violation{t.at(arg.Pos()), "puts a statement together in " + sel.Sel.Name,
					"SQL stands in constants or .sql files; values go in as parameters"})
			}
		}
		return true
	})
	return found
}

// joined reports a concatenation with a variable, or a Sprintf.
func joined(e ast.Expr, consts map[string]bool) bool {
	switch e := e.(type) {
	case *ast.BinaryExpr:
		return e.Op == token.ADD && (textual(e.X) || textual(e.Y)) && (!isConstant(e.X, consts) || !isConstant(e.Y, consts))
	case *ast.CallExpr:
		sel, ok := e.Fun.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		x, ok := sel.X.(*ast.Ident)
		return ok && x.Name == "fmt" && strings.HasPrefix(sel.Sel.Name, "Sprint")
	default:
		return false
	}
}

// textual reports whether a string literal is somewhere in a sum.
func textual(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		return e.Kind == token.STRING
	case *ast.BinaryExpr:
		return textual(e.X) || textual(e.Y)
	default:
		return false
	}
}

// isConstant reports whether an expression is built of literals and constants.
func isConstant(e ast.Expr, consts map[string]bool) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		return true
	case *ast.Ident:
		return consts[e.Name]
	case *ast.ParenExpr:
		return isConstant(e.X, consts)
	case *ast.BinaryExpr:
		return isConstant(e.X, consts) && isConstant(e.Y, consts)
	default:
		return false
	}
}

// constNames are the constants that a file declares, at any depth.
func constNames(f *ast.File) map[string]bool {
	names := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		if d, ok := n.(*ast.GenDecl); ok && d.Tok == token.CONST {
			for _, s := range d.Specs {
				for _, name := range s.(*ast.ValueSpec).Names {
					names[name.Name] = true
				}
			}
		}
		return true
	})
	return names
}

// maySkip are the test files that may skip, with the run that does not.
var maySkip = map[string]string{
	"ingest/bedrock/awslogs/moto_test.go": "it needs moto's S3, STS, SQS and CloudWatch Logs: make test/bedrock gives it them, and .ci/run runs that",
	"internal/kafka/servers_test.go":      "some tests need SASL or three nodes: make test/kafka and test/kafka3 give them",
	"cmd/tallystick/faults_disk_test.go":  "a full disk needs a small file system, which only root can mount: .ci/run is root; make test/chaos has the rest",
}

// skips finds tests that may not run. Beside maySkip only internal/testenv
// skips, when the whole shared data pack is absent.
func (t *Tree) skips(f *File) (found []Violation) {
	if maySkip[f.Path] != "" {
		return nil
	}
	ast.Inspect(f.AST, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := sel.X.(*ast.Ident)
		short := ok && x.Name == "testing" && sel.Sel.Name == "Short"
		skip := ok && slices.Contains([]string{"t", "tb", "b"}, x.Name) && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name)
		if short || skip {
			found = append(found, Violation{t.at(n.Pos()), "uses " + x.Name + "." + sel.Sel.Name, "a test that is skipped proves nothing; a missing engine fails it"})
		}
		return true
	})
	return found
}

// comments wants a package comment everywhere and most exports documented.
func (t *Tree) comments() (found []Violation) {
	for _, pkg := range t.packages() {
		if within(pkg, generated) {
			continue
		}
		commented, exported, documented := false, 0, 0
		for _, f := range t.Go {
			if f.Package != pkg || f.Test {
				continue
			}
			commented = commented || f.AST.Doc != nil
			e, d := countDocs(f.AST)
			exported, documented = exported+e, documented+d
		}
		if !commented {
			found = append(found, Violation{pkg, "has no package comment", "a package says what it is, what it promises and what it never does"})
		}
		if float64(documented) < minDocumentedShare*float64(exported) {
			found = append(found, Violation{pkg, fmt.Sprintf("documents %d of %d exported names", documented, exported),
				"comments carry promises and reasons; at least 80 % of exports have one"})
		}
	}
	return found
}

// countDocs counts a file's exported declarations and those with a comment. A
// comment on a group counts for its members.
func countDocs(f *ast.File) (exported, documented int) {
	count := func(name *ast.Ident, docs ...*ast.CommentGroup) {
		if !name.IsExported() {
			return
		}
		exported++
		if slices.ContainsFunc(docs, func(g *ast.CommentGroup) bool { return g != nil }) {
			documented++
		}
	}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil || exportedReceiver(d.Recv) {
				count(d.Name, d.Doc)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					count(s.Name, d.Doc, s.Doc, s.Comment)
				case *ast.ValueSpec:
					for _, n := range s.Names {
						count(n, d.Doc, s.Doc, s.Comment)
					}
				}
			}
		}
	}
	return exported, documented
}

func exportedReceiver(recv *ast.FieldList) bool {
	e := recv.List[0].Type
	if star, ok := e.(*ast.StarExpr); ok {
		e = star.X
	}
	if index, ok := e.(*ast.IndexExpr); ok {
		e = index.X
	}
	id, ok := e.(*ast.Ident)
	return ok && id.IsExported()
}

// Text checks every kept file, Go or not, for what must not be in any. places
// are the absolute paths of this machine that no file may name.
func (t *Tree) Text(places []string) []Violation {
	var found []Violation
	for _, name := range t.Files {
		data, err := fs.ReadFile(t.fsys, name)
		if err != nil {
			found = append(found, Violation{name, err.Error(), "every kept file must be readable"})
			continue
		}
		if bytes.IndexByte(data, 0) >= 0 {
			continue // binary
		}
		for i, line := range strings.Split(string(data), "\n") {
			if what, reason := badLine(name, line, places); what != "" {
				found = append(found, Violation{fmt.Sprintf("%s:%d", name, i+1), what, reason})
			}
		}
	}
	return found
}

func badLine(name, line string, places []string) (what, reason string) {
	lock := path.Base(name) == "package-lock.json"
	if lock && strings.Contains(line, `"resolved"`) {
		return "records a download address", "a lock file pins content by its hash; where it comes from is the machine's setting"
	}
	if host := registryHost.FindString(line); host != "" {
		return "names the package registry " + host, "where packages come from is the machine's setting"
	}
	for _, p := range places {
		if strings.Contains(line, p) {
			return "names the path " + p, "a path of one machine means nothing on another"
		}
	}
	return "", ""
}
