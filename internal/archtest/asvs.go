package archtest

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"go/ast"
	"io/fs"
	"regexp"
	"slices"
	"strings"
)

// asvsFile maps the requirements of OWASP ASVS 5.0, levels 1 and 2, to what
// shows them.
const asvsFile = "docs/asvs.csv"

// How many requirements ASVS 5.0.0 has of each level.
const (
	asvsLevel1 = 70
	asvsLevel2 = 183
)

// minReasonWords is the least that can convince a reviewer.
const minReasonWords = 2

var asvsID = regexp.MustCompile(`^V(\d+)\.(\d+)\.(\d+)$`)

// ASVS checks that the map is complete, that each test it names exists, each
// heading too, and that what is not applicable says why.
func (t *Tree) ASVS() ([]Violation, error) {
	data, err := fs.ReadFile(t.fsys, asvsFile)
	if err != nil {
		return nil, err
	}
	rows, err := csv.NewReader(bytes.NewReader(data)).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", asvsFile, err)
	}
	tests := t.testNames()
	var found []Violation
	seen, levels := map[string]bool{}, map[string]int{}
	for i, row := range rows[1:] {
		where := fmt.Sprintf("%s:%d", asvsFile, i+2)
		add := func(reason, format string, args ...any) {
			found = append(found, Violation{where, fmt.Sprintf(format, args...), reason})
		}
		id, level, status, evidence, note := row[0], row[1], row[2], strings.Fields(row[3]), row[4]
		if !asvsID.MatchString(id) || seen[id] {
			add("each requirement stands once", "requirement %q", id)
		}
		seen[id] = true
		levels[level]++
		if len(strings.Fields(note)) < minReasonWords {
			add("a reviewer wants to know how or why", "%s has the note %q", id, note)
		}
		switch status {
		case "tested":
			if len(evidence) == 0 {
				add("a claim without a test is a claim", "%s is tested by nothing", id)
			}
			for _, e := range evidence {
				if !slices.Contains(tests, e) && !t.hasWebTest(e) {
					add("a test that is not there shows nothing", "%s names the test %s", id, e)
				}
			}
		case "documented":
			for _, e := range evidence {
				if !t.hasHeading(e) {
					add("a section that is not there says nothing", "%s names the section %s", id, e)
				}
			}
			if len(evidence) == 0 {
				add("a claim without a section is a claim", "%s is documented nowhere", id)
			}
		case "not_applicable":
			if len(evidence) > 0 {
				add("what does not apply needs no evidence", "%s names %v", id, evidence)
			}
		default:
			add("a requirement is tested, documented or not_applicable", "%s is %q", id, status)
		}
	}
	if levels["1"] != asvsLevel1 || levels["2"] != asvsLevel2 {
		found = append(found, Violation{asvsFile, fmt.Sprintf("has %d requirements of level 1 and %d of level 2", levels["1"], levels["2"]),
			fmt.Sprintf("ASVS 5.0.0 has %d and %d", asvsLevel1, asvsLevel2)})
	}
	return found, nil
}

// testNames lists every test and fuzz target as "folder:Name".
func (t *Tree) testNames() []string {
	var names []string
	for _, f := range t.Go {
		if !f.Test {
			continue
		}
		for _, d := range f.AST.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && fn.Recv == nil && (strings.HasPrefix(fn.Name.Name, "Test") || strings.HasPrefix(fn.Name.Name, "Fuzz")) {
				names = append(names, f.Package+":"+fn.Name.Name)
			}
		}
	}
	return names
}

// hasHeading reports whether "file.md#slug" is there, the slug being the
// heading in lower case with dashes for blanks.
func (t *Tree) hasHeading(ref string) bool {
	name, slug, ok := strings.Cut(ref, "#")
	data, err := fs.ReadFile(t.fsys, name)
	if err != nil || !ok {
		return false
	}
	for line := range strings.Lines(string(data)) {
		title := strings.TrimLeft(line, "#")
		if len(title) == len(line) {
			continue
		}
		if strings.ReplaceAll(strings.ToLower(strings.TrimSpace(title)), " ", "-") == slug {
			return true
		}
	}
	return false
}

// hasWebTest reports whether "file:text" names a test file of the dashboard and
// a text that stands in it.
func (t *Tree) hasWebTest(ref string) bool {
	name, text, ok := strings.Cut(ref, ":")
	if !ok || !strings.HasPrefix(name, "api/web/test/") {
		return false
	}
	data, err := fs.ReadFile(t.fsys, name)
	return err == nil && bytes.Contains(data, []byte(text))
}
