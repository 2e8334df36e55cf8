package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// bypassSites are the files that may call RunAsBypass, each with what for. A
// site more is a decision: there are at most maxBypassSites.
var bypassSites = map[string]string{}

const maxBypassSites = 6

const bypassReason = "RunAsBypass steps over every tenant's isolation: its callers are few, listed in internal/archtest, and say why in a constant"

// Tenancy checks what could undermine tenants' isolation in Postgres.
func (t *Tree) Tenancy() []Violation {
	return t.tenancy(bypassSites)
}

func (t *Tree) tenancy(sites map[string]string) []Violation {
	found := t.bypasses(sites)
	for _, f := range t.Go {
		if !f.Test && !within(f.Package, generated) && f.Package != "internal/archtest" {
			found = append(found, t.sessionState(f)...)
		}
	}
	return append(found, t.sessionStateSQL()...)
}

// bypasses finds calls of RunAsBypass from elsewhere, without a constant reason,
// and sites that are listed in vain.
func (t *Tree) bypasses(sites map[string]string) (found []Violation) {
	called := map[string]bool{}
	for _, f := range t.Go {
		if f.Test {
			continue
		}
		consts := constNames(f.AST)
		calls := map[*ast.SelectorExpr]bool{}
		ast.Inspect(f.AST, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				sel, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || sel.Sel.Name != "RunAsBypass" {
					return true
				}
				calls[sel], called[f.Path] = true, true
				switch {
				case sites[f.Path] == "":
					found = append(found, Violation{t.at(n.Pos()), "calls RunAsBypass", bypassReason})
				case len(n.Args) != 4 || !isConstant(n.Args[2], consts):
					found = append(found, Violation{t.at(n.Pos()), "gives RunAsBypass a reason that is no constant", bypassReason})
				}
			case *ast.SelectorExpr:
				if n.Sel.Name == "RunAsBypass" && !calls[n] {
					found = append(found, Violation{t.at(n.Pos()), "takes RunAsBypass as a value", bypassReason})
				}
			}
			return true
		})
	}
	for site := range sites {
		if !called[site] {
			found = append(found, Violation{site, "is listed for RunAsBypass and does not call it", bypassReason})
		}
	}
	if len(sites) > maxBypassSites {
		found = append(found, Violation{"internal/archtest", fmt.Sprintf("lists %d sites of RunAsBypass, at most %d", len(sites), maxBypassSites), bypassReason})
	}
	return found
}

// sessionStates are statements whose effect outlives a transaction, so that a
// pooler hands it to the next client, or that change who is asked.
var sessionStates = regexp.MustCompile(`(?i)\bset\s+(session\s+|local\s+)?role\b|\breset\s+role\b|\bset\s+(local\s+)?session\s+authorization\b|\brow_security\b` +
	`|\bset_config\s*\([^()]*,\s*(false|'f'|'off')\s*\)|\bset\s+(session\s+)?(app|tallystick)\.|\bsession_replication_role\b`)

const sessionReason = "a role or setting of the session goes to the pooler's next client, and the context must be the transaction's alone"

// sessionState finds such statements in the string literals of a file.
func (t *Tree) sessionState(f *File) (found []Violation) {
	ast.Inspect(f.AST, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if ok && lit.Kind == token.STRING {
			if what := sessionStates.FindString(lit.Value); what != "" {
				found = append(found, Violation{t.at(lit.Pos()), "says " + what, sessionReason})
			}
		}
		return true
	})
	return found
}

// sessionStateSQL is the same for files of SQL, comments left out.
func (t *Tree) sessionStateSQL() (found []Violation) {
	for _, name := range t.Files {
		if path.Ext(name) != ".sql" || !strings.HasPrefix(name, "migrations/postgres/") {
			continue
		}
		data, err := fs.ReadFile(t.fsys, name)
		if err != nil {
			found = append(found, Violation{name, err.Error(), "every kept file must be readable"})
			continue
		}
		for i, line := range slices.Collect(strings.Lines(string(data))) {
			text, _, _ := strings.Cut(line, "--")
			if what := sessionStates.FindString(text); what != "" {
				found = append(found, Violation{fmt.Sprintf("%s:%d", name, i+1), "says " + what, sessionReason})
			}
		}
	}
	return found
}
