package archtest

import (
	"slices"
	"strings"
	"testing"
)

func TestASVS(t *testing.T) {
	tree, _ := module(t)
	found, err := tree.ASVS()
	if err != nil {
		t.Fatal(err)
	}
	report(t, found)
}

// TestBadASVSIsFound is the positive control of TestASVS.
func TestBadASVSIsFound(t *testing.T) {
	tree := small(t, map[string]string{
		"a/a_test.go": "package a\nfunc TestA(t *testing.T) {}\n",
		"docs/s.md":   "# Title\n## How it is kept\n",
		asvsFile: `requirement,level,status,evidence,note
V1.1.1,2,tested,a:TestA,this is fine
V1.1.2,2,tested,a:TestB,no such test
V1.1.2,2,tested,,twice and by nothing
V1.1.3,1,documented,docs/s.md#how-it-is-kept,this is fine
V1.1.4,1,documented,docs/s.md#nowhere,no such section
V1.1.5,1,not_applicable,,No
V1.1.6,1,done,,is no status
`,
	})
	found, err := tree.ASVS()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range found {
		got = append(got, v.Where+" "+v.What)
	}
	want := []string{
		"docs/asvs.csv:3 V1.1.2 names the test a:TestB",
		`docs/asvs.csv:4 requirement "V1.1.2"`,
		"docs/asvs.csv:4 V1.1.2 is tested by nothing",
		"docs/asvs.csv:6 V1.1.4 names the section docs/s.md#nowhere",
		`docs/asvs.csv:7 V1.1.5 has the note "No"`,
		`docs/asvs.csv:8 V1.1.6 is "done"`,
		"docs/asvs.csv has 4 requirements of level 1 and 3 of level 2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
