package http1

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// poller waits for many connections with one goroutine.
//
// Whoever waits has an id that is never used again, and is called exactly once: by
// whoever takes it out of the map. Sockets are registered for one event each
// (EPOLLONESHOT) and stay registered; an event that comes late has an id that nobody
// waits under, and is dropped.
type poller struct {
	file *os.File
	raw  syscall.RawConn

	mu    sync.Mutex // protects what follows
	next  uint64
	waits map[uint64]waiter // nil once it is closed
}

// waiter is who waits.
type waiter struct {
	wake func()
	stop func() bool // unties it from a context; nil is from none
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or the runtime would not wait for it
		return nil, errors.Join(err, unix.Close(fd))
	}
	p := &poller{file: os.NewFile(uintptr(fd), "epoll"), waits: map[uint64]waiter{}}
	if p.raw, err = p.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, p.file.Close())
	}
	return p, nil
}

// watch calls gone when the other side of c has closed it. The id is for forget, and 0
// where nobody watches, as when the system has no room for another socket.
func (p *poller) watch(c syscall.RawConn, gone func()) uint64 {
	p.mu.Lock()
	if p.waits == nil {
		p.mu.Unlock()
		return 0
	}
	p.next++
	id := p.next
	p.waits[id] = waiter{wake: gone}
	p.mu.Unlock()
	switch err := p.register(c, id, unix.EPOLLRDHUP); {
	case errors.Is(err, net.ErrClosed):
		p.fire(id)
	case err != nil:
		p.forget(id)
		return 0
	}
	return id
}

// forget ends a watch.
func (p *poller) forget(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.waits, id)
}

// park calls resume when c can be read or ctx ends. False means that it never will.
func (p *poller) park(ctx context.Context, c syscall.RawConn, resume func()) bool {
	p.mu.Lock()
	if p.waits == nil {
		p.mu.Unlock()
		return false
	}
	p.next++
	id := p.next
	p.waits[id] = waiter{resume, context.AfterFunc(ctx, func() { p.fire(id) })}
	p.mu.Unlock()
	if p.register(c, id, unix.EPOLLIN|unix.EPOLLRDHUP) != nil {
		p.fire(id) // reading will say what is wrong
	}
	return true
}

func (p *poller) register(c syscall.RawConn, id uint64, events uint32) error {
	ev := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
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

// fire calls a waiter, unless somebody has done so.
func (p *poller) fire(id uint64) {
	p.mu.Lock()
	w, ok := p.waits[id]
	delete(p.waits, id)
	p.mu.Unlock()
	if !ok {
		return
	}
	if w.stop != nil {
		w.stop()
	}
	go w.wake()
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
			p.fire(uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32)
		}
	}
}

// close ends run, and resumes whoever is parked still; nothing is parked afterwards.
func (p *poller) close() {
	p.mu.Lock()
	all := p.waits
	p.waits = nil
	p.mu.Unlock()
	_ = p.file.Close() // of an epoll instance there is nothing to lose
	for _, w := range all {
		if w.stop != nil {
			w.stop()
			go w.wake()
		}
	}
}
