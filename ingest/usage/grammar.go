package usage

import (
	"slices"
	"strings"
)

// anyElement is the key of every element of a list.
const anyElement = "*"

// place is one path of a dialect's documents, and what a value there is.
type place struct {
	keys     []string
	next     []uint16
	count    Count // + 1; 0 is none
	name     uint8 // + 1; 0 is none
	element  uint8 // index in lists + 1: the end of an element
	document bool  // the end of a document within another
	text     bool  // strings here and below are answer text: measured, not kept
	base64   bool  // a JSON document in base64
}

// grammar is a dialect's table in the form that scanners follow. Place 0 is
// where no path leads, 1 the document's root, 2 any place within text.
type grammar struct {
	nodes      []place
	shape      shape
	merging    merging
	terminal   []string // kinds of event that end a stream
	finishEnds bool     // a finish reason ends it
	usageEnds  bool     // so do a finish reason and usage
}

const (
	nowhere = iota
	root
	within
)

// notText are keys below text whose strings are no text of an answer.
var notText = []string{
	"type", "role", "id", "name", "index", "data", "url", "signature", "encrypted_content", "thoughtSignature",
	"format", "stop_reason", "stop_sequence", "mimeType", "media_type", "call_id", "status", "redactedContent", "b64_json",
}

// child is the place of the value under key in the container at node.
func (g *grammar) child(node uint16, key string) uint16 {
	n := &g.nodes[node]
	if i := slices.Index(n.keys, key); i >= 0 {
		return n.next[i]
	}
	if n.text && !slices.Contains(notText, key) {
		return within
	}
	return nowhere
}

// at finds or makes the place of a dotted path.
func (g *grammar) at(path string) *place {
	at := uint16(root)
	if path != "" {
		for key := range strings.SplitSeq(path, ".") {
			at = g.step(at, key)
		}
	}
	return &g.nodes[at]
}

func (g *grammar) step(at uint16, key string) uint16 {
	if i := slices.Index(g.nodes[at].keys, key); i >= 0 {
		return g.nodes[at].next[i]
	}
	to := uint16(len(g.nodes))
	g.nodes = append(g.nodes, place{})
	g.nodes[at].keys = append(g.nodes[at].keys, key)
	g.nodes[at].next = append(g.nodes[at].next, to)
	return to
}

// compile makes the grammar of a table.
func compile(t table) *grammar {
	g := &grammar{nodes: make([]place, 3), shape: t.shape, merging: t.merging, terminal: t.terminal, finishEnds: t.finishEnds, usageEnds: t.usageEnds}
	g.nodes[within].text = true
	roots := t.roots
	if roots == nil {
		roots = []string{""}
	}
	for _, prefix := range roots {
		for count, paths := range t.counts {
			for _, p := range paths {
				g.at(prefix + p).count = count + 1
			}
		}
		for name, paths := range t.names {
			for _, p := range paths {
				g.at(prefix + p).name = uint8(name) + 1
			}
		}
		for path, l := range t.lists {
			g.at(prefix + path + ".*").element = uint8(l) + 1
			g.at(prefix + path + ".*." + lists[l].kind).name = nameDetail + 1
			g.at(prefix + path + ".*." + lists[l].count).count = detailTokens + 1
		}
		for _, p := range t.text {
			g.at(prefix + p).text = true
		}
	}
	if t.documents != "" {
		g.at(t.documents).document = true
	}
	return g
}
