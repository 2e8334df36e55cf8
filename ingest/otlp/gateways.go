package otlp

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Gateways are the addresses of gateways whose calls get into the log without OTLP: the
// metering proxy, and others that report what passes through them. A span that says
// that its call went there is of a call that has an event already. The zero value has
// none.
type Gateways struct {
	// Metered remembers the calls of the proxy in this process; nil where there is none.
	Metered *Metered

	named []gateway
	local int64 // port on this machine where the metering proxy listens; 0 is none
}

// gateway is one address; port 0 is any.
type gateway struct {
	host string
	port int64
}

// NewGateways reads addresses, each HOST or HOST:PORT, and where the metering proxy of
// this machine listens, "" where there is none. What listens on loopback or on all
// addresses is known as localhost to callers on this machine only: elsewhere that name
// means another machine.
func NewGateways(addrs []string, proxyListen string) (Gateways, error) {
	var g Gateways
	for _, addr := range addrs {
		one, ok := parseGateway(addr)
		if !ok {
			return Gateways{}, fmt.Errorf("%q is neither HOST nor HOST:PORT", addr)
		}
		g.named = append(g.named, one)
	}
	if proxyListen == "" {
		return g, nil
	}
	host, text, err := net.SplitHostPort(proxyListen)
	port, portErr := strconv.ParseUint(text, 10, 16)
	if err != nil || portErr != nil {
		return Gateways{}, fmt.Errorf("%q is not host:port", proxyListen)
	}
	ip, err := netip.ParseAddr(host)
	if host == "" || isLoopback(host) || err == nil && ip.IsUnspecified() {
		g.local = int64(port)
	} else {
		g.named = append(g.named, gateway{plainHost(host), int64(port)})
	}
	return g, nil
}

func parseGateway(addr string) (gateway, bool) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		host, text = addr, "0"
	}
	port, err := strconv.ParseUint(text, 10, 16)
	host = plainHost(host)
	_, ipErr := netip.ParseAddr(host)
	return gateway{host, int64(port)}, err == nil && host != "" && !strings.ContainsAny(host, "/@ \t") && (ipErr == nil || !strings.Contains(host, ":"))
}

// has says whether a call to host and port, as a program on the machine peer states
// them, went to one of the gateways. Port 0 is one that was not stated, as programs
// leave out those that go without saying.
func (g *Gateways) has(host string, port int64, peer string) bool {
	if host == "" {
		return false
	}
	host = plainHost(host)
	for _, one := range g.named {
		if one.host == host && (one.port == 0 || one.port == port || port == 0 && (one.port == 443 || one.port == 80)) {
			return true
		}
	}
	return g.local != 0 && port == g.local && isLoopback(host) && isLoopback(peer)
}

// hasURL is has for a base URL.
func (g *Gateways) hasURL(base, peer string) bool {
	u, err := url.Parse(base)
	if err != nil {
		return false
	}
	port, _ := strconv.ParseUint(u.Port(), 10, 16) // none is 0
	return g.has(u.Hostname(), int64(port), peer)
}

// plainHost is a host as it is compared: in lower case, without brackets or the dot of
// a rooted name.
func plainHost(host string) string {
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(plainHost(host))
	return plainHost(host) == "localhost" || err == nil && ip.Unmap().IsLoopback()
}
