package event

import "encoding/binary"

// AppendTagPairs appends the tags as they are sealed: key and value of each,
// both behind their length in LEB128, in the order given. It is the form that
// docs/ledger-format.md gives for tags.
func AppendTagPairs(b []byte, tags []Tag) []byte {
	for i := range tags {
		for _, s := range [...]string{tags[i].Key, tags[i].Value} {
			b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
		}
	}
	return b
}

// DecodeTagPairs reads what AppendTagPairs wrote. The strings alias b. The
// error is a *FieldError: the bytes are no list of pairs, or an empty one.
func DecodeTagPairs(b []byte) ([]Tag, error) {
	var tags []Tag
	r := reader{b: b}
	for len(r.b) > 0 && len(tags) <= MaxTags {
		t := Tag{Key: alias(r.bytes())}
		t.Value = alias(r.bytes())
		tags = append(tags, t)
	}
	if r.bad || len(tags) == 0 || len(tags) > MaxTags {
		return nil, fail("sealed_tags", RuleMalformed, "not a list of pairs")
	}
	return tags, nil
}
