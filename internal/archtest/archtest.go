// Package archtest keeps the shape of the program: which package may import
// which, what may not stand in a file, and that every dependency has a reason.
//
// Each rule is data with its reason, and a violation's text is the edge or the
// line, and that reason, so that whoever breaks a rule learns why it exists.
// The rules run in this package's tests over the source tree, on every
// platform's files at once; the same rules run over small broken trees, which
// they must refuse. The program never imports this package.
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Module is the import path of the program's own module.
const Module = "github.com/tallystick/tallystick"

// Violation is one broken rule at one place.
type Violation struct {
	Where  string // file, or file:line, below the module's root
	What   string // the edge or the text that is forbidden
	Reason string // why
}

// String is the line a failing test prints.
func (v Violation) String() string {
	return fmt.Sprintf("%s: %s\n\tbecause %s", v.Where, v.What, v.Reason)
}

// File is one parsed Go file.
type File struct {
	Path    string // slash-separated, below the module's root
	Package string // folder of the file; "." for the root
	Test    bool
	AST     *ast.File
	Imports []string // import paths; those of this module without Module and slash
}

// Tree is the source of one module.
type Tree struct {
	fsys  fs.FS
	fset  *token.FileSet
	Files []string // every file that version control would keep, in order
	Go    []*File  // the Go files among them
}

// Load reads the module whose root is fsys. Modules nested below it (deploy's
// tools) are no part of the program and give files but no Go.
func Load(fsys fs.FS) (*Tree, error) {
	t := &Tree{fsys: fsys, fset: token.NewFileSet()}
	if err := t.walk(".", nil); err != nil {
		return nil, err
	}
	var nested []string
	for _, name := range t.Files {
		if path.Base(name) == "go.mod" && name != "go.mod" {
			nested = append(nested, path.Dir(name)+"/")
		}
	}
	for _, name := range t.Files {
		inNested := slices.ContainsFunc(nested, func(dir string) bool { return strings.HasPrefix(name, dir) })
		if path.Ext(name) != ".go" || inNested || strings.Contains(name, "testdata/") {
			continue
		}
		f, err := t.parse(name)
		if err != nil {
			return nil, err
		}
		t.Go = append(t.Go, f)
	}
	return t, nil
}

func (t *Tree) parse(name string) (*File, error) {
	src, err := fs.ReadFile(t.fsys, name)
	if err != nil {
		return nil, err
	}
	tree, err := parser.ParseFile(t.fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	f := &File{Path: name, Package: path.Dir(name), Test: strings.HasSuffix(name, "_test.go"), AST: tree}
	for _, spec := range tree.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		f.Imports = append(f.Imports, strings.TrimPrefix(p, Module+"/"))
	}
	return f, nil
}

// at is the file and line of a position.
func (t *Tree) at(pos token.Pos) string {
	p := t.fset.Position(pos)
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// packages lists the folders with Go files that are not only tests, in order.
func (t *Tree) packages() []string {
	var names []string
	for _, f := range t.Go {
		if !f.Test {
			names = append(names, f.Package)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// walk collects files, without what the .gitignore files on the way exclude.
func (t *Tree) walk(dir string, ignore []pattern) error {
	if rules, err := fs.ReadFile(t.fsys, path.Join(dir, ".gitignore")); err == nil {
		ignore = append(slices.Clone(ignore), parseIgnore(dir, string(rules))...)
	}
	entries, err := fs.ReadDir(t.fsys, dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if e.Name() == ".git" || ignored(ignore, name, e.IsDir()) {
			continue
		}
		switch {
		case e.IsDir():
			err = t.walk(name, ignore)
		case e.Type().IsRegular():
			t.Files = append(t.Files, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pattern is the part of gitignore's language that this repository uses:
// a name or path.Match form, anchored by a slash in it, for folders only when
// it ends with one.
type pattern struct {
	dir      string // folder of the .gitignore
	form     string
	anchored bool
	dirOnly  bool
}

func parseIgnore(dir, rules string) []pattern {
	var list []pattern
	for line := range strings.Lines(rules) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		p := pattern{dir: dir, dirOnly: strings.HasSuffix(line, "/")}
		p.form = strings.TrimSuffix(line, "/")
		p.anchored = strings.Contains(p.form, "/")
		p.form = strings.TrimPrefix(p.form, "/")
		list = append(list, p)
	}
	return list
}

func ignored(list []pattern, name string, isDir bool) bool {
	for _, p := range list {
		if p.dirOnly && !isDir {
			continue
		}
		target := path.Base(name)
		if p.anchored {
			target = strings.TrimPrefix(strings.TrimPrefix(name, p.dir), "/")
		}
		if ok, err := path.Match(p.form, target); err == nil && ok {
			return true
		}
	}
	return false
}
