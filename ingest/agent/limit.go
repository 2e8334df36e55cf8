package agent

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/tallystick/tallystick/internal/tenant"
)

// bucket is a token bucket: tokens come back at a rate up to a burst.
type bucket struct {
	rate, burst float64 // tokens per second, and at most

	mu     sync.Mutex // protects what follows
	tokens float64
	at     time.Time // when tokens was right
}

// newBucket makes a full one. A burst is never less than one frame, or a frame
// could never pass.
func newBucket(perSecond int) *bucket {
	burst := max(float64(perSecond)*burstSeconds, MaxSamples)
	return &bucket{rate: float64(perSecond), burst: burst, tokens: burst}
}

// take takes n tokens, or none and says when they will be there.
func (b *bucket) take(n int, now time.Time) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.at.IsZero() && now.After(b.at) {
		b.tokens = min(b.burst, b.tokens+now.Sub(b.at).Seconds()*b.rate)
	}
	if b.at.IsZero() || now.After(b.at) {
		b.at = now
	}
	if missing := float64(n) - b.tokens; missing > 0 {
		return time.Duration(missing / b.rate * float64(time.Second)), false
	}
	b.tokens -= float64(n)
	return 0, true
}

// give puts back tokens that were taken and not used.
func (b *bucket) give(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.burst, b.tokens+float64(n))
}

// limits are the buckets of tenants. Those of agents are in their producers.
type limits struct {
	rate int

	mu      sync.Mutex // protects tenants
	tenants map[tenant.ID]*bucket
}

func newLimits(o Options) *limits {
	return &limits{rate: o.TenantRate, tenants: map[tenant.ID]*bucket{}}
}

// of is a tenant's bucket. Only tenants of agents that were let in have one.
func (l *limits) of(id tenant.ID) *bucket {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.tenants[id]
	if b == nil {
		b = newBucket(l.rate)
		l.tenants[id] = b
	}
	return b
}

// Reasons of a delay.
const (
	reasonStreamRate = "stream_rate"
	reasonTenantRate = "tenant_rate"
)

// allow takes n samples out of the agent's and the tenant's bucket, or out of
// none.
func (g *Gateway) allow(p *producer, n int) (wait time.Duration, reason string, ok bool) {
	now := g.opts.Now()
	if wait, ok := p.bucket.take(n, now); !ok {
		return wait, reasonStreamRate, false
	}
	if wait, ok := p.tenantBucket.take(n, now); !ok {
		p.bucket.give(n)
		return wait, reasonTenantRate, false
	}
	return 0, "", true
}

// bounded is a listener that closes at once what is over a limit.
type bounded struct {
	net.Listener
	perAddress, most int
	refused          func()

	mu    sync.Mutex // protects what follows
	open  map[netip.Prefix]int
	total int
}

func newBounded(l net.Listener, perAddress, most int, refused func()) *bounded {
	return &bounded{Listener: l, perAddress: perAddress, most: most, refused: refused, open: map[netip.Prefix]int{}}
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := sourceOf(c.RemoteAddr())
		if b.reserve(from) {
			return &boundedConn{Conn: c, release: sync.OnceFunc(func() { b.release(from) })}, nil
		}
		b.refused()
		_ = c.Close() // nobody is to be told: the peer sees it
	}
}

func (b *bounded) reserve(from netip.Prefix) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.total >= b.most || b.open[from] >= b.perAddress {
		return false
	}
	b.total++
	b.open[from]++
	return true
}

func (b *bounded) release(from netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total--
	if b.open[from]--; b.open[from] == 0 {
		delete(b.open, from)
	}
}

// boundedConn gives its place back when it is closed.
type boundedConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// sourceOf is what connections are counted by: an IPv4 address, or the /64 that
// one IPv6 host usually has whole.
func sourceOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// fromLoopback reports that a connection comes from this machine.
func fromLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
