package chdb

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseStatement(t *testing.T) {
	for _, test := range []struct {
		sql  string
		want statement
	}{
		{"", statement{}},
		{" -- only a comment\n /* and another */ ", statement{body: " -- only a comment\n /* and another */ "}},
		{"select 1", statement{verb: "SELECT", body: "select 1"}},
		{"/* x */ (SELECT 1)", statement{verb: "(", body: "/* x */ (SELECT 1)"}},
		{"SELECT 1 FORMAT JSON", statement{verb: "SELECT", body: "SELECT 1", format: "JSON"}},
		{"SELECT 1\nformat TSV ;", statement{verb: "SELECT", body: "SELECT 1", format: "TSV"}},
		{"SELECT format FROM t", statement{verb: "SELECT", body: "SELECT format FROM t"}},
		{"SELECT 'FORMAT JSON'", statement{verb: "SELECT", body: "SELECT 'FORMAT JSON'"}},
		{"SELECT * FROM (SELECT 1 FORMAT x)", statement{verb: "SELECT", body: "SELECT * FROM (SELECT 1 FORMAT x)"}},
		{"INSERT INTO t (a) FORMAT Native", statement{verb: "INSERT", body: "INSERT INTO t (a)", format: "Native"}},
		{"INSERT INTO t SETTINGS a = 1 FORMAT Native", statement{verb: "INSERT", body: "INSERT INTO t SETTINGS a = 1", format: "Native", settings: true}},
		{"INSERT INTO settings (settings) FORMAT Native", statement{verb: "INSERT", body: "INSERT INTO settings (settings)", format: "Native"}},
		{"INSERT INTO t FORMAT Values (1), (2)", statement{verb: "INSERT", body: "INSERT INTO t FORMAT Values (1), (2)"}},
		{"SELECT 1 INTO OUTFILE 'x'", statement{verb: "SELECT", body: "SELECT 1 INTO OUTFILE 'x'", hostFile: true}},
		{"SELECT 1 INTO -- '\n OutFile 'x'", statement{verb: "SELECT", body: "SELECT 1 INTO -- '\n OutFile 'x'", hostFile: true}},
		{"SELECT 1 INTO\u2003OUTFILE 'x'", statement{verb: "SELECT", body: "SELECT 1 INTO\u2003OUTFILE 'x'", hostFile: true}},
		{"SELECT 'it''s INTO OUTFILE', 'a\\' INFILE', `outfile`, \"infile\", $$ outfile $$, $a$ $$ infile $a$",
			statement{verb: "SELECT", body: "SELECT 'it''s INTO OUTFILE', 'a\\' INFILE', `outfile`, \"infile\", $$ outfile $$, $a$ $$ infile $a$"}},
		{"SELECT 'open", statement{verb: "SELECT", body: "SELECT 'open"}},
		{"SELECT /* open", statement{verb: "SELECT", body: "SELECT /* open"}},
		{"SELECT $1 + $", statement{verb: "SELECT", body: "SELECT $1 + $"}},
	} {
		if got := parseStatement(test.sql); got != test.want {
			t.Errorf("%q:\n got %+v\nwant %+v", test.sql, got, test.want)
		}
	}
}

// TestQuotingIsOneToken: whatever a value holds, quoted it is one token and so
// cannot end the literal that it stands in.
func TestQuotingIsOneToken(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.OneOf(rapid.String(), rapid.StringMatching("['`\\\\\n;$-]*")).Draw(t, "value")
		for _, quoted := range []string{quoteString(value), quoteName(value)} {
			if end := nextToken(quoted+" rest", 0).end; end != len(quoted) {
				t.Fatalf("%q ends at %d of %d", quoted, end, len(quoted))
			}
		}
	})
}

func FuzzParseStatement(f *testing.F) {
	for _, sql := range []string{"SELECT 1 FORMAT Native", "INSERT INTO t SETTINGS a='b' FORMAT TSV", "$a$ x $a$", "'\\", "/*", "SELECT 1 INTO OUTFILE 'x'", "#!\n--"} {
		f.Add(sql)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		s := parseStatement(sql)
		if !strings.HasPrefix(sql, s.body) {
			t.Errorf("the body %q is no start of the statement", s.body)
		}
		if s.format == "" && s.body != sql {
			t.Error("a statement without a closing FORMAT was cut")
		}
		upper := strings.ToUpper(sql)
		if s.hostFile && !strings.Contains(upper, "OUTFILE") && !strings.Contains(upper, "INFILE") {
			t.Error("a file clause was seen where there is none")
		}
	})
}
