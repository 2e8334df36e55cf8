package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestAllowed(t *testing.T) {
	for addr, want := range map[string][2]bool{ // public only, private too
		"1.1.1.1": {true, true}, "8.8.8.8": {true, true}, "2606:4700::1111": {true, true}, "::ffff:8.8.8.8": {true, true},
		"127.0.0.1": {false, true}, "::1": {false, true}, "10.1.2.3": {false, true}, "172.31.0.1": {false, true}, "192.168.0.1": {false, true},
		"fd12::1": {false, true}, "::ffff:127.0.0.1": {false, true}, "172.32.0.1": {true, true},
		"169.254.169.254": {}, "::ffff:169.254.169.254": {}, "fd00:ec2::254": {}, "100.100.100.200": {}, "64:ff9b::a9fe:a9fe": {}, "fec0::1": {},
		"fe80::1": {}, "fe80::1%eth0": {}, "8.8.8.8%x": {}, "0.0.0.0": {}, "::": {}, "255.255.255.255": {}, "224.0.0.1": {}, "ff02::1": {}, "2002:7f00:1::": {}, "::127.0.0.1": {},
	} {
		a, _ := netip.ParseAddr(addr)
		if got := [2]bool{Allowed(a, false), Allowed(a, true)}; got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}

func TestCheckURL(t *testing.T) {
	for raw, want := range map[string][2]string{ // public only, private too; "" is refused
		"https://api.openai.com":            {"https://api.openai.com", "https://api.openai.com"},
		"https://API.openai.com/":           {"https://api.openai.com", "https://api.openai.com"},
		"https://api.openai.com:8443/v1/":   {"https://api.openai.com:8443/v1", "https://api.openai.com:8443/v1"},
		"https://8.8.8.8/x":                 {"https://8.8.8.8/x", "https://8.8.8.8/x"},
		"http://api.openai.com":             {"", "http://api.openai.com"},
		"http://127.0.0.1:9000":             {"", "http://127.0.0.1:9000"},
		"http://[::1]:9000/a":               {"", "http://[::1]:9000/a"},
		"https://vllm":                      {"", "https://vllm"},
		"https://vllm.internal":             {"", "https://vllm.internal"},
		"https://localhost.":                {"", "https://localhost."},
		"https://169.254.169.254/latest":    {},
		"https://[fd00:ec2::254]/":          {},
		"https://[fe80::1%25eth0]/":         {},
		"https://2130706433/":               {},
		"https://0x7f.1/":                   {},
		"https://127.1/":                    {},
		"https://0177.0.0.0x1/":             {},
		"https://user:sk-secret@api.x.com/": {},
		"https://api.x.com/?a=b":            {},
		"https://api.x.com/?":               {},
		"https://api.x.com/#a":              {},
		"https://api.x.com/#":               {},
		"https://api.x.com/../admin":        {},
		"https://api.x.com/%2e%2e/admin":    {},
		"https://api.x.com/a%2fb":           {},
		"https://api.x.com//a":              {},
		"https://api.x.com\\@evil.com":      {},
		"https://api.x.com:0":               {},
		"https://api.x.com:99999":           {},
		"https://api..com":                  {},
		"https://":                          {},
		"https:api.x.com":                   {},
		"file:///etc/passwd":                {},
		"gopher://api.x.com":                {},
		"//api.x.com":                       {},
		"https://api.x.com/\r\nHost: a":     {},
		"https://exämple.com":               {},
		"":                                  {},
	} {
		for i, private := range []bool{false, true} {
			u, err := CheckURL(raw, private)
			got := ""
			if err == nil {
				got = u.String()
			} else if !errors.Is(err, ErrURL) || strings.Contains(err.Error(), "sk-secret") {
				t.Errorf("%q: %v", raw, err)
			}
			if got != want[i] {
				t.Errorf("%q, private %v: %q (%v), want %q", raw, private, got, err, want[i])
			}
		}
	}
}

// TestCheckedURLsStay reads each accepted URL again: it is in its one form.
func TestCheckedURLsStay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.StringMatching(`https?://[a-zA-Z0-9.:\[\]@-]{1,20}(/[a-z./%-]{0,10})?`).Draw(t, "url")
		private := rapid.Bool().Draw(t, "private")
		u, err := CheckURL(raw, private)
		if err != nil {
			return
		}
		again, err := CheckURL(u.String(), private)
		if err != nil || again.String() != u.String() {
			t.Fatalf("%q became %q, which becomes %v (%v)", raw, u, again, err)
		}
	})
}

// TestControlJudgesWhatIsConnectedTo dials a listener of our own by name.
func TestControlJudgesWhatIsConnectedTo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for private, want := range map[bool]error{false: ErrAddress, true: nil} {
		d := net.Dialer{ControlContext: Control(private), Timeout: 5 * time.Second}
		conn, err := d.DialContext(t.Context(), "tcp4", net.JoinHostPort("localhost", port))
		if conn != nil {
			conn.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("private %v: %v, want %v", private, err, want)
		}
	}
	for _, at := range [][2]string{{"udp", "8.8.8.8:53"}, {"tcp", "no address"}, {"tcp", "name:1"}} {
		if err := Control(true)(context.Background(), at[0], at[1], nil); !errors.Is(err, ErrAddress) {
			t.Errorf("%v: %v", at, err)
		}
	}
}
