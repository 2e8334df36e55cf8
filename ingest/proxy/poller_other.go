//go:build !linux

package proxy

import (
	"context"
	"errors"
	"syscall"
)

// poller is none here: streams stay with net/http.
type poller struct{}

func newPoller() (*poller, error) { return nil, errors.ErrUnsupported }

func (*poller) park(*exchange, context.Context, syscall.RawConn, syscall.RawConn) bool { return false }
func (*poller) run()                                                                   {}
func (*poller) close()                                                                 {}
