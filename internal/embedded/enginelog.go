package embedded

import (
	"bufio"
	"io"
	"log/slog"
	"strings"
	"sync"
)

const (
	logTailLines    = 40
	maxLogLineBytes = 4 << 10
)

// engineLog passes a child's log on to slog line by line and keeps the last
// lines, for the error that says why the child ended.
type engineLog struct {
	logger *slog.Logger

	mu   sync.Mutex // guards tail
	tail []string
}

func newEngineLog(logger *slog.Logger) *engineLog { return &engineLog{logger: logger} }

// follow reads r to its end and then closes the returned channel.
func (l *engineLog) follow(r io.ReadCloser) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer r.Close()
		lines := bufio.NewReaderSize(r, maxLogLineBytes)
		for {
			line, tooLong, err := lines.ReadLine()
			if err != nil {
				return
			}
			l.add(string(line))
			for tooLong && err == nil { // the rest of an overlong line is dropped
				_, tooLong, err = lines.ReadLine()
			}
		}
	}()
	return done
}

func (l *engineLog) add(line string) {
	if strings.TrimSpace(line) == "" {
		return
	}
	l.mu.Lock()
	l.tail = append(l.tail, line)
	if len(l.tail) > logTailLines {
		l.tail = l.tail[len(l.tail)-logTailLines:]
	}
	l.mu.Unlock()
	if strings.HasPrefix(line, "FATAL:") || strings.HasPrefix(line, "PANIC:") {
		l.logger.Warn("engine message", "line", line)
		return
	}
	l.logger.Debug("engine message", "line", line)
}

// reset forgets the lines of an earlier attempt.
func (l *engineLog) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = nil
}

// text returns the last lines, oldest first.
func (l *engineLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.tail, "\n")
}

// complaint returns the last lines that say what went wrong, or all of them.
func (l *engineLog) complaint() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var bad []string
	for _, line := range l.tail {
		if strings.Contains(line, "FATAL") || strings.Contains(line, "PANIC") || strings.Contains(line, "rror") {
			bad = append(bad, line)
		}
	}
	if bad == nil {
		bad = l.tail
	}
	return strings.Join(bad, "; ")
}
