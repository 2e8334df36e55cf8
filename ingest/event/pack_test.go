package event

import (
	"bytes"
	"crypto/rand"
	"testing"
)

// TestPackedControl: what does not fit a record is packed, and is what it was.
func TestPackedControl(t *testing.T) {
	line := []byte(`{"provider":"openai","model":"gpt-4o","valid_from":"2026-01-01T00:00:00Z"}` + "\n")
	for name, size := range map[string]int{"small": 10, "at the limit": maxPlainContent, "over it": maxPlainContent + 1, "the largest": MaxControlContent} {
		content := bytes.Repeat(line, size/len(line)+1)[:size]
		record := AppendControlRecord(nil, &Control{Kind: ControlPriceBook, Version: "v", Content: content, IssuedAt: 1_760_000_000_000_000_000})
		rec, err := SplitRecord(record)
		if err != nil {
			t.Fatal(err)
		}
		c, err := DecodeControl(rec.Body)
		if err != nil || !bytes.Equal(c.Content, content) || c.Version != "v" || c.IssuedAt != 1_760_000_000_000_000_000 {
			t.Errorf("%s: %d bytes of content, %v", name, len(c.Content), err)
		}
		if len(record) > maxPlainContent+100 {
			t.Errorf("%s: a record of %d bytes", name, len(record))
		}
	}
}

// What unpacks to more than a control record may hold, or is no gzip, is refused
// before it costs anything.
func TestPackedControlIsBounded(t *testing.T) {
	noise := make([]byte, 100)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	small := compress([]byte("content"))
	for name, packed := range map[string][]byte{
		"a bomb":        compress(make([]byte, 4*MaxControlContent)),
		"noise":         noise,
		"cut":           small[:len(small)-3],
		"more after it": append(bytes.Clone(small), 1),
		"two members":   append(bytes.Clone(small), small...),
	} {
		body := appendString(appendString(nil, 1, ControlPriceBook), 6, alias(packed))
		if c, err := DecodeControl(body); err == nil {
			t.Errorf("%s: taken, %d bytes of content", name, len(c.Content))
		}
	}
	both := appendString(appendString(appendString(nil, 1, ControlPriceBook), 4, "x"), 6, alias(small))
	if _, err := DecodeControl(both); err == nil {
		t.Error("two contents are taken")
	}
}
