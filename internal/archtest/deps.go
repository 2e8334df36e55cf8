package archtest

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// registryHost finds the address of a package registry, a proxy or a mirror.
var registryHost = regexp.MustCompile(`https?://[^/\s"'<>)]*(regist|goproxy|proxy\.golang|mirror|npmjs|pypi|repo[0-9]*\.)[^/\s"'<>)]*`)

// DependenciesDoc says why each direct dependency is there.
const DependenciesDoc = "docs/dependencies.md"

// requirement is one line of go.mod.
type requirement struct {
	module   string
	indirect bool
}

// Dependencies compares three things that must be equal: the modules that our
// Go files import, the direct requirements of go.mod, and the list with
// reasons in docs/dependencies.md. The npm packages that package.json files
// name must be in the list too.
func (t *Tree) Dependencies() ([]Violation, error) {
	mod, err := fs.ReadFile(t.fsys, "go.mod")
	if err != nil {
		return nil, err
	}
	doc, err := fs.ReadFile(t.fsys, DependenciesDoc)
	if err != nil {
		return nil, err
	}
	reasons := documentedNames(string(doc))
	imported := t.importedModules(parseRequirements(string(mod)))
	var found []Violation
	for _, r := range parseRequirements(string(mod)) {
		user, used := imported[r.module]
		switch {
		case used && r.indirect:
			found = append(found, Violation{"go.mod", r.module + " is marked indirect but " + user + " imports it", "go.mod must say what is used: go mod tidy"})
		case !used && !r.indirect:
			found = append(found, Violation{"go.mod", r.module + " is a direct requirement that nothing imports", "fewer dependencies are better: go mod tidy"})
		}
		if used && !reasons[r.module] {
			found = append(found, Violation{DependenciesDoc, r.module + " is imported by " + user + " and not listed", "every direct dependency has a reason"})
		}
		if !used && reasons[r.module] {
			found = append(found, Violation{DependenciesDoc, r.module + " is listed and no file imports it", "the list says what is, not what was"})
		}
	}
	npm, err := t.npmPackages()
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(npm)) {
		if !reasons[name] {
			found = append(found, Violation{DependenciesDoc, name + " of " + npm[name] + " is not listed", "every direct dependency has a reason"})
		}
	}
	return found, nil
}

// importedModules maps each required module that a Go file imports to one such
// file.
func (t *Tree) importedModules(reqs []requirement) map[string]string {
	used := map[string]string{}
	for _, f := range t.Go {
		for _, p := range f.Imports {
			best := ""
			for _, r := range reqs {
				if (p == r.module || strings.HasPrefix(p, r.module+"/")) && len(r.module) > len(best) {
					best = r.module
				}
			}
			if best != "" && used[best] == "" {
				used[best] = f.Path
			}
		}
	}
	return used
}

// parseRequirements reads go.mod's requirements.
func parseRequirements(mod string) (reqs []requirement) {
	block := false
	for line := range strings.Lines(mod) {
		line = strings.TrimSpace(line)
		switch {
		case line == "require (":
			block = true
			continue
		case line == ")":
			block = false
			continue
		case strings.HasPrefix(line, "require "):
			line = strings.TrimPrefix(line, "require ")
		case !block:
			continue
		}
		if module, rest, ok := strings.Cut(line, " "); ok && module != "//" {
			reqs = append(reqs, requirement{module, strings.Contains(rest, "// indirect")})
		}
	}
	return reqs
}

// documentedNames are the names in the first column of the document's tables,
// where the second column gives a reason.
func documentedNames(doc string) map[string]bool {
	names := map[string]bool{}
	for line := range strings.Lines(doc) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "|") || len(cells) < 2 || strings.TrimSpace(cells[1]) == "" {
			continue
		}
		for name := range strings.SplitSeq(cells[0], ",") {
			names[strings.Trim(strings.TrimSpace(name), "`")] = true
		}
	}
	return names
}

// npmPackages maps the packages that package.json files ask for to the file.
func (t *Tree) npmPackages() (map[string]string, error) {
	found := map[string]string{}
	for _, name := range t.Files {
		if !strings.HasSuffix("/"+name, "/package.json") {
			continue
		}
		data, err := fs.ReadFile(t.fsys, name)
		if err != nil {
			return nil, err
		}
		var pkg struct {
			Dependencies, DevDependencies, OptionalDependencies map[string]string
		}
		if err := json.Unmarshal(data, &pkg); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, set := range []map[string]string{pkg.Dependencies, pkg.DevDependencies, pkg.OptionalDependencies} {
			for dep := range set {
				found[dep] = name
			}
		}
	}
	return found, nil
}

// Locks wants an integrity hash on every package of every npm lock file: npm
// itself accepts an entry without one.
func (t *Tree) Locks() ([]Violation, error) {
	var found []Violation
	for _, name := range t.Files {
		if !strings.HasSuffix("/"+name, "/package-lock.json") {
			continue
		}
		data, err := fs.ReadFile(t.fsys, name)
		if err != nil {
			return nil, err
		}
		var lock struct {
			Packages map[string]struct {
				Integrity string
				Link      bool
			}
		}
		if err := json.Unmarshal(data, &lock); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, pkg := range slices.Sorted(maps.Keys(lock.Packages)) {
			p := lock.Packages[pkg]
			if pkg != "" && !p.Link && !strings.HasPrefix(p.Integrity, "sha512-") {
				found = append(found, Violation{name, pkg + " has no sha512 integrity", "npm installs such an entry unchecked"})
			}
		}
	}
	return found, nil
}
