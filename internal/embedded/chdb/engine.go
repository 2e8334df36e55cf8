package chdb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"unsafe"
)

// maxIdleConnections bounds the connections kept for the next request with the
// same settings. One costs about 100 kB; a new one costs about a millisecond.
const maxIdleConnections = 32

// lane bounds how many statements of one sort run at once; the others wait.
type lane chan struct{}

// greetings is how many connecting clients are answered at once. Such questions
// touch no table. With the reports' slots all taken by long queries they would
// wait until the client gives up connecting.
const greetings = 2

// Engine is a running engine with its connections.
type Engine struct {
	lib     *library
	signals signalActions
	args    []string // what every connection passes

	// control boots the engine, keeps it alive and cancels queries of others.
	// controlMu serialises its use.
	controlMu sync.Mutex
	control   *connection

	reads  lane // one slot per running query
	writes lane // the one slot of inserts and changes
	yields bool // merges yield to what somebody waits for; the holder of writes alone uses it
	greets lane // for what a client asks when it connects

	mu     sync.Mutex // protects the fields below
	idle   []*connection
	serial uint64 // of connections, for their tags
}

// Open loads the library and starts the engine on cfg.DataDir. The caller must
// hold a lock on that directory; the engine would answer a second process only
// with a refusal that says nothing.
func Open(cfg Config) (*Engine, error) {
	if !filepath.IsAbs(cfg.LibPath) || !filepath.IsAbs(cfg.DataDir) || !filepath.IsAbs(cfg.RunDir) {
		return nil, fmt.Errorf("%w: paths must be absolute", ErrStart)
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStart, err)
	}
	configFile, err := cfg.writeConfig()
	if err != nil {
		return nil, err
	}
	signals, err := saveSignals()
	if err != nil {
		return nil, err
	}
	lib, err := openLibrary(cfg.LibPath)
	if err != nil {
		return nil, err
	}
	if err := checkVersion(cfg.VersionFile, lib.version()); err != nil {
		return nil, err
	}
	lib.setSignals(0)
	e := &Engine{
		lib:     lib,
		signals: signals,
		args:    []string{"tallystick", "--path=" + cfg.DataDir, "--config-file=" + configFile},
		reads:   make(lane, cfg.Readers),
		writes:  make(lane, 1),
		greets:  make(lane, greetings),
	}
	if e.control, err = e.connect("", nil, false); err != nil {
		return nil, errors.Join(ErrStart, err)
	}
	return e, nil
}

// Version is the engine's version, such as "26.7.2.1".
func (e *Engine) Version() (string, error) {
	e.controlMu.Lock()
	defer e.controlMu.Unlock()
	out, err := e.control.exec("SELECT version()", "TSVRaw", nil)
	return string(trimLine(out.data)), err
}

func trimLine(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	return b
}

// connect opens a connection, selects the database and applies settings. A
// reader is made read-only last, and with the old analyzer: in this engine a
// SETTINGS clause nested in a sub-query escapes readonly=1 under the new one.
func (e *Engine) connect(database string, settings []setting, reader bool) (*connection, error) {
	e.mu.Lock()
	e.serial++
	tag := fmt.Sprintf("tallystick-connection-%d", e.serial)
	e.mu.Unlock()
	args := append([]string{}, e.args...)
	handle := e.lib.open(append(args, "--log_comment="+tag))
	// Every connect may install handlers again.
	if err := e.signals.restore(); err != nil {
		return nil, err
	}
	if handle == nil {
		return nil, refusal(codeUnknown, "UNKNOWN_EXCEPTION", "the engine refused a connection")
	}
	c := &connection{lib: e.lib, outer: handle, conn: *(*unsafe.Pointer)(handle), tag: tag}
	if err := c.prepare(database, settings, reader); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// lease is the right to use one connection, with one slot, until release.
type lease struct {
	*connection
	engine *Engine
	slot   lane
	// spoiled connections are closed instead of kept.
	spoiled bool
}

// acquire waits for a slot of the lane, in order of arrival, and takes a
// connection for the session.
func (e *Engine) acquire(ctx context.Context, s session, slot lane) (*lease, error) {
	select {
	case slot <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c := e.takeIdle(s.key())
	if c == nil {
		var err error
		if c, err = e.connect(s.database, s.settings, s.reader); err != nil {
			<-slot
			return nil, err
		}
		c.key = s.key()
	}
	return &lease{connection: c, engine: e, slot: slot, spoiled: !s.keep}, nil
}

// takeIdle removes the most recently used connection of that key.
func (e *Engine) takeIdle(key string) *connection {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := len(e.idle) - 1; i >= 0; i-- {
		if c := e.idle[i]; c.key == key {
			e.idle = append(e.idle[:i], e.idle[i+1:]...)
			return c
		}
	}
	return nil
}

// release gives connection and slot back.
func (l *lease) release() {
	defer func() { <-l.slot }()
	if l.spoiled {
		l.close()
		return
	}
	if dropped := l.engine.keepIdle(l.connection); dropped != nil {
		dropped.close()
	}
}

// keepIdle stores c and returns the connection that has to make room.
func (e *Engine) keepIdle(c *connection) (dropped *connection) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.idle = append(e.idle, c)
	if len(e.idle) > maxIdleConnections {
		dropped, e.idle = e.idle[0], append(e.idle[:0], e.idle[1:]...)
	}
	return dropped
}

// kill asks the engine to stop the query that runs on the connection of that
// tag. The holder of the connection sees it end with code 394.
func (e *Engine) kill(tag string) {
	e.controlMu.Lock()
	defer e.controlMu.Unlock()
	// The outcome does not matter: the query may have ended by itself.
	_, _ = e.control.exec("KILL QUERY WHERE Settings['log_comment'] = "+quoteString(tag)+" ASYNC", "Null", nil)
}
