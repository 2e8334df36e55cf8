//go:build !linux

package http1

import (
	"context"
	"errors"
	"syscall"
)

// poller is none here: net/http serves.
type poller struct{}

func newPoller() (*poller, error) { return nil, errors.ErrUnsupported }

func (*poller) watch(syscall.RawConn, func()) uint64 { return 0 }

func (*poller) forget(uint64) {}

func (*poller) park(context.Context, syscall.RawConn, func()) bool { return false }

func (*poller) run() {}

func (*poller) close() {}
