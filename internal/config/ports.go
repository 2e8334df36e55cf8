package config

import "strings"

// FreePorts are environment variables that put every listener on any free port
// of loopback: for programs that share their machine with others like them, as
// those of tests and measurements do. Flags outrank them.
func FreePorts() []string {
	var env []string
	for _, k := range keys {
		if strings.HasSuffix(k.name, "listen") {
			env = append(env, k.envName()+"=127.0.0.1:0")
		}
	}
	return env
}
