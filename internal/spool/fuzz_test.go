package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallystick/tallystick/internal/kafka"
)

// FuzzSegment opens a folder whose newest segment is any bytes: it is refused
// with one of the sentinels, or what it has is read without a fault, and a
// second time in the same way.
func FuzzSegment(f *testing.F) {
	dir := f.TempDir()
	s := open(f, dir, Options{})
	for _, r := range []string{"one", "", "three"} {
		if _, err := s.Append(context.Background(), [][]byte{[]byte(r), []byte("and")}); err != nil {
			f.Fatal(err)
		}
	}
	closeSpool(f, s)
	whole, err := os.ReadFile(filepath.Join(dir, segmentName(1)))
	if err != nil {
		f.Fatal(err)
	}
	for i := 0; i <= len(whole); i += 7 {
		f.Add(whole[:i])
	}
	f.Add(append(bytes.Clone(whole), whole...))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, segmentName(1)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		before := ""
		for i := range 2 {
			s, err := Open(dir, Options{})
			if err != nil {
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrKey) {
					t.Fatal(err)
				}
				return
			}
			_, got := all(t, s)
			if now := fmt.Sprintf("%q", got); i > 0 && now != before {
				t.Fatalf("read %s, then %s", before, now)
			} else {
				before = now
			}
			closeSpool(t, s)
		}
	})
}

// FuzzKafkaRecord reads any bytes as a record; what is one is written as the
// same record again.
func FuzzKafkaRecord(f *testing.F) {
	f.Add(appendKafka(nil, &kafka.Record{
		Topic: "events", Partition: 3, TimestampMs: -5, Key: []byte("k"), Value: []byte("v"),
		Headers: []kafka.Header{{Key: "a", Value: []byte("b")}, {Key: ""}},
	}))
	f.Add([]byte{recordVersion, 0, 0, 0, 0, 0, 255, 255, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		topics := map[string]string{}
		r, err := parseKafka(b, topics)
		if err != nil {
			if !errors.Is(err, errRecord) {
				t.Fatal(err)
			}
			return
		}
		written := appendKafka(nil, &r)
		if len(written) > kafkaBytes(&r) {
			t.Fatalf("%d bytes, at most %d were said", len(written), kafkaBytes(&r))
		}
		again, err := parseKafka(written, topics)
		if err != nil || cmp.Diff(r, again) != "" {
			t.Fatalf("%v: %s", err, cmp.Diff(r, again))
		}
	})
}
