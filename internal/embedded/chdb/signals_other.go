//go:build !linux

package chdb

// signalActions is empty where signal actions cannot be read portably. The
// engine's own switch (chdb_set_signal_handlers_enabled) is then the only guard.
type signalActions struct{}

func saveSignals() (signalActions, error) { return signalActions{}, nil }

func (*signalActions) restore() error { return nil }
