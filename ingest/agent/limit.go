package agent

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/tallystick/tallystick/internal/tenant"
)

// newBucket makes a full token bucket. A burst is never less than one frame, or a
// frame could never pass.
func newBucket(perSecond int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), max(perSecond*burstSeconds, MaxSamples))
}

// limits are the buckets of tenants. Those of agents are in their producers.
type limits struct {
	rate int

	mu      sync.Mutex // protects tenants
	tenants map[tenant.ID]*rate.Limiter
}

func newLimits(o Options) *limits {
	return &limits{rate: o.TenantRate, tenants: map[tenant.ID]*rate.Limiter{}}
}

// of is a tenant's bucket. Only tenants of agents that were let in have one.
func (l *limits) of(id tenant.ID) *rate.Limiter {
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
// none and says when they will be there.
func (g *Gateway) allow(p *producer, n int) (delay time.Duration, reason string, ok bool) {
	now := g.opts.Now()
	own, shared := p.bucket.ReserveN(now, n), p.tenantBucket.ReserveN(now, n)
	switch wait := own.DelayFrom(now); {
	case wait > 0:
		delay, reason = wait, reasonStreamRate
	case shared.DelayFrom(now) > 0:
		delay, reason = shared.DelayFrom(now), reasonTenantRate
	default:
		return 0, "", true
	}
	shared.CancelAt(now)
	own.CancelAt(now)
	return delay, reason, false
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
