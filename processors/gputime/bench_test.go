package gputime

import (
	"fmt"
	"testing"
)

// BenchmarkApply is one sample of a fleet of 2,000 devices, in records of 100, with
// what it takes to store each second of it.
func BenchmarkApply(b *testing.B) {
	const devices = 2000
	c := NewCore(Options{}, 0)
	var batches []Batch
	round := int64(0)
	next := func() {
		batches = batches[:0]
		end := base + (round+1)*10*second
		for d := 0; d < devices; d += 100 {
			batch := Batch{Tenant: fmt.Sprint("t-", d/200), Agent: "a", ReceivedAt: end}
			for i := range 100 {
				batch.Samples = append(batch.Samples, Sample{
					GPU: fmt.Sprint("GPU-", d+i), Start: end - 10*second, End: end, Used: round % million,
					Device: Device{Host: "h", Model: "H100", Cloud: "aws", Instance: "p5.48xlarge"},
					Claims: []Claim{{Owner: owner("search", fmt.Sprint("p", d+i)), Share: Unknown, Used: Unknown}},
				})
			}
			batches = append(batches, batch)
		}
		round++
	}
	next()
	n, at, events := 0, 0, 0
	for b.Loop() {
		if n++; n < 100 {
			continue // a batch is a hundred samples
		}
		n = 0
		c.Apply(&batches[at])
		if at++; at == len(batches) {
			ch := c.Take()
			events += len(ch.Events)
			b.StopTimer()
			next()
			at = 0
			b.StartTimer()
		}
	}
	b.ReportMetric(float64(events)/float64(b.N), "events/sample")
}
