// Package egress says where this program may connect to in a customer's name.
//
// Addresses that customers give us are a way into our own network unless they
// are checked (server-side request forgery). CheckURL judges what was written
// down, Control judges each address that a name was resolved to, at the moment
// of connecting, so that a name which changes its address gains nothing. An
// address is refused unless it is public; an installation may also allow
// loopback and private networks, and never link-local ones, where clouds keep
// their credentials.
//
// It never connects and never resolves names by itself.
package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
)

var (
	// ErrURL says that a URL is not one that we call; the text says why.
	ErrURL = errors.New("egress: not an address that may be called")
	// ErrAddress says that a name led to an address that may not be called.
	ErrAddress = errors.New("egress: the name leads to an address that may not be called")
)

// MaxURLBytes bounds a URL.
const MaxURLBytes = 1024

// special are the ranges that are not public: IANA's registries of special
// purpose addresses for IPv4 and IPv6, multicast, and the deprecated site-local.
var special = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24",
	"192.88.99.0/24", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"::/128", "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001:db8::/32", "2002::/16",
	"2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fe80::/10", "fec0::/10", "ff00::/8", "fd00:ec2::/32",
)

// private are those that an installation may allow.
var private = prefixes("10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		list[i] = netip.MustParsePrefix(t)
	}
	return list
}

// Allowed reports whether the address may be connected to. privateToo allows
// loopback and private networks beside public ones.
func Allowed(addr netip.Addr, privateToo bool) bool {
	if !addr.IsValid() || addr.Zone() != "" {
		return false
	}
	addr = addr.Unmap()
	if within(addr, private) && !metadata.Contains(addr) {
		return privateToo
	}
	return !within(addr, special)
}

// metadata is in a private range and holds a cloud's credentials.
var metadata = netip.MustParsePrefix("fd00:ec2::/32")

func within(addr netip.Addr, ranges []netip.Prefix) bool {
	for _, p := range ranges {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// CheckURL reads a base URL and gives it in the one form that is kept: https,
// or http too where private networks are allowed; a host; at most a path. It
// refuses credentials, query and fragment, and hosts that are no public name or
// address. Errors match ErrURL and never repeat credentials.
func CheckURL(raw string, privateToo bool) (*url.URL, error) {
	refuse := func(format string, args ...any) (*url.URL, error) {
		return nil, fmt.Errorf("%w: %s", ErrURL, fmt.Sprintf(format, args...))
	}
	if raw == "" || len(raw) > MaxURLBytes || strings.IndexFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' }) >= 0 {
		return refuse("it has 1 to %d printable ASCII characters", MaxURLBytes)
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Opaque != "":
		return refuse("it is no URL")
	case u.Scheme != "https" && !(u.Scheme == "http" && privateToo):
		return refuse("its scheme is https")
	case u.User != nil:
		return refuse("it holds a user or a password; those belong into the key")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(raw, "#"):
		return refuse("it holds a query or a fragment")
	case u.RawPath != "" || strings.Contains(u.Path, "//") || dotted(u.Path):
		return refuse("its path is not plain")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return refuse("its port is none")
		}
	}
	if why := checkHost(strings.ToLower(u.Hostname()), privateToo); why != "" {
		return refuse("%s", why)
	}
	u.Host = strings.ToLower(u.Host)
	u.Path = strings.TrimSuffix(u.Path, "/")
	return u, nil
}

func dotted(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if part == "." || part == ".." {
			return true
		}
	}
	return false
}

// localNames end the names of things that are not public.
var localNames = []string{"localhost", "local", "internal", "intranet", "lan", "home.arpa", "in-addr.arpa", "ip6.arpa", "test", "invalid", "onion"}

// checkHost says what is wrong with a host, which is in lower case.
func checkHost(host string, privateToo bool) string {
	if addr, err := netip.ParseAddr(host); err == nil {
		if !Allowed(addr, privateToo) {
			return "its address is not public"
		}
		return ""
	}
	name := strings.TrimSuffix(host, ".")
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "its host is no name"
		}
	}
	// What ends in a number is an address to some who read it, in octal or whole.
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return "its host is no name"
	}
	if privateToo {
		return ""
	}
	if len(labels) == 1 {
		return "its host is not a public name"
	}
	for _, l := range localNames {
		if name == l || strings.HasSuffix(name, "."+l) {
			return "its host is not a public name"
		}
	}
	return ""
}

// Control is the ControlContext of a net.Dialer that connects only where
// Allowed says so, whatever the name was resolved to. Errors match ErrAddress.
func Control(privateToo bool) func(ctx context.Context, network, address string, _ syscall.RawConn) error {
	return func(_ context.Context, network, address string, _ syscall.RawConn) error {
		host, _, err := net.SplitHostPort(address)
		if err != nil || !strings.HasPrefix(network, "tcp") {
			return ErrAddress
		}
		if addr, err := netip.ParseAddr(host); err != nil || !Allowed(addr, privateToo) {
			return ErrAddress
		}
		return nil
	}
}
