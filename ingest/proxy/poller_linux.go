package proxy

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// poller waits for many connections with one goroutine.
//
// Each parked exchange has an id that is never used again, and is woken exactly once:
// by whoever takes it out of the map. Sockets are registered for one event each
// (EPOLLONESHOT) and stay registered; an event that comes late has an id that nobody
// waits under, and is dropped.
type poller struct {
	file *os.File
	raw  syscall.RawConn

	mu     sync.Mutex // protects what follows
	next   uint64
	parked map[uint64]*exchange // nil once it is closed
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or the runtime would not wait for it
		return nil, errors.Join(err, unix.Close(fd))
	}
	p := &poller{file: os.NewFile(uintptr(fd), "epoll"), parked: map[uint64]*exchange{}}
	if p.raw, err = p.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, p.file.Close())
	}
	return p, nil
}

// clientSide is the last bit of what a client's socket is registered under; that of
// a provider's is 0.
const clientSide = 1

// park waits until the provider can be read, the client has gone or ctx ends, and
// carries the exchange on then. False means that it does not wait; otherwise the
// exchange is not the caller's any more.
func (p *poller) park(x *exchange, ctx context.Context, provider, client syscall.RawConn) bool {
	p.mu.Lock()
	if p.parked == nil {
		p.mu.Unlock()
		return false
	}
	p.next++
	id := p.next
	x.unwatch = context.AfterFunc(ctx, func() { p.wake(id, false) })
	p.parked[id] = x
	p.mu.Unlock()
	err := p.register(client, id<<1|clientSide, unix.EPOLLRDHUP)
	if err == nil {
		err = p.register(provider, id<<1, unix.EPOLLIN|unix.EPOLLRDHUP)
	}
	if err != nil {
		p.wake(id, false) // reading will say what is wrong
	}
	return true
}

func (p *poller) register(c syscall.RawConn, data uint64, events uint32) error {
	ev := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: int32(uint32(data)), Pad: int32(uint32(data >> 32))}
	var err error
	if ended := c.Control(func(fd uintptr) {
		inner := p.raw.Control(func(epoll uintptr) {
			if err = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_ADD, int(fd), &ev); errors.Is(err, unix.EEXIST) {
				err = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_MOD, int(fd), &ev)
			}
		})
		err = errors.Join(err, inner)
	}); ended != nil {
		return ended
	}
	return err
}

// wake carries an exchange on, unless somebody has done so.
func (p *poller) wake(id uint64, gone bool) {
	p.mu.Lock()
	x := p.parked[id]
	delete(p.parked, id)
	p.mu.Unlock()
	if x != nil {
		go x.carryOn(gone)
	}
}

// run wakes until close.
func (p *poller) run() {
	events := make([]unix.EpollEvent, 128)
	for {
		n := 0
		err := p.raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0) // a failure would be a bad descriptor: Read says so
			return n > 0
		})
		if err != nil {
			return
		}
		for _, ev := range events[:n] {
			data := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
			p.wake(data>>1, data&1 == clientSide)
		}
	}
}

// close wakes everything and ends run; nothing is parked afterwards.
func (p *poller) close() {
	p.mu.Lock()
	all := p.parked
	p.parked = nil
	p.mu.Unlock()
	_ = p.file.Close() // of an epoll instance there is nothing to lose
	for _, x := range all {
		go x.carryOn(false)
	}
}
