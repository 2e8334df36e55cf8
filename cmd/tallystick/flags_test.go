package main

import (
	"regexp"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// secretName is how a flag that takes a secret would be called; one that names
// a file with it, or an id, takes none.
var (
	// noSecret are flags whose names sound like one, with what they take.
	noSecret = map[string]string{
		"agents-pepper-vault": "where it is, in a service that keeps it",
		"key":                 "public keys of checkpoints",
		"kms-key":             "the name of a key, in a service that keeps it",
		"tokens":              "how many tokens a minute",
	}
	secretName = regexp.MustCompile(`(?i)(^|-)(token|secret|password|passphrase|dsn|key|value|pepper|credential)s?($|-)`)
	takesFile  = regexp.MustCompile(`-(file|files|dir|id|kind|days)$`)
)

// No command takes a secret on the command line, where every user of the machine
// and the shell's history see it.
func TestNoFlagTakesASecret(t *testing.T) {
	commands, flags := 0, 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		commands++
		c.Flags().VisitAll(func(f *pflag.Flag) {
			flags++
			if noSecret[f.Name] == "" && secretName.MatchString(f.Name) && !takesFile.MatchString(f.Name) && f.Value.Type() != "bool" {
				t.Errorf("%s --%s: %s", c.CommandPath(), f.Name, f.Usage)
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand())
	if commands < 20 || flags < 100 {
		t.Errorf("only %d commands with %d flags were looked at", commands, flags)
	}
	for _, name := range []string{"postgres-dsn", "token", "value", "kafka-sasl-password", "api-key"} {
		if !secretName.MatchString(name) || takesFile.MatchString(name) {
			t.Errorf("--%s would not be noticed", name)
		}
	}
}

// What is wrong with a command line is found before the command begins, and says
// so by its exit code.
func TestWrongCommandLines(t *testing.T) {
	t.Setenv("TALLYSTICK_TOKEN", "none")
	for _, args := range [][]string{
		{"nonsense"},
		{"ledger", "verify", "--nonsense"},
		{"audit", "tail", "--limit", "x"},
		{"tokens", "revoke"},
		{"tenants", "create"},
		{"tenants", "create", "Not A Tenant"},
		{"prices", "rerate", "--tenant", "acme"},
		{"ledger", "quarantine", "--partition", "1"},
		{"ledger", "export", "--tenant", "acme", "--from", "50", "--to", "2", "-o", "nothing"},
		{"audit", "export", "--from", "50", "--to", "2", "-o", "nothing"},
		{"subject", "tags", "--tenant", "acme", "--set", ""},
	} {
		if code := run(t.Context(), args); code != exitUsage {
			t.Errorf("%q: exit code %d, want %d", args, code, exitUsage)
		}
	}
}
