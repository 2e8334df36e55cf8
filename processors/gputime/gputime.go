// Package gputime makes money of GPU samples: it turns what agents saw of devices
// into usage events of GPU time, by owner and window.
//
// It is a processor of the topic `telemetry`. A window is a fixed span of one
// device's time. When the log's own clock has passed its end by the lateness, the
// window's time is split between who had the device, and each part becomes one
// usage event of kind gpu_time that goes back into `events` by the ordinary edge.
// Samples that come later make the next revision: a correction of the event,
// never a second body under its id.
//
// What it promises:
//   - The parts of a window add up to the time in which the device was observed,
//     to the microsecond. What nobody had is a part of its own (unallocated), and
//     so is what nobody measured (unknown): absent is never 0.
//   - Core is a pure function of the records of a partition, in order. Nothing
//     depends on how they were batched, on a wall clock or on when a process died:
//     time is the greatest received_at that stands in the log. After a silence the
//     runner writes a record without samples, so that time goes on there too.
//   - In which order samples came, and how often, changes no sum: it only decides
//     how many revisions there are.
//   - A device's time is accounted once, whoever measures it: the device is its
//     uuid. Where two speak for the same time, an agent goes before a collector
//     (OTLP), and of two of a kind the one whose sample ends first.
//   - An event is in Postgres, in the transaction that moves the offset in
//     `telemetry`, before it is sent. Whoever dies in between sends it again, with
//     the same bytes.
//   - Time is accounted only where a sample stands for it, and no sample stands for
//     more than MaxGap. A gap is not bridged.
//
// What it never does: price (the ledger does, by the price book), read entries, or
// make anything of a derived event.
package gputime

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/tallystick/tallystick/ingest/event"
)

// Operation is what the events of this package call themselves.
const Operation = "gpu_time"

// ProducerID names the producer of the events.
const ProducerID = "gputime"

// derivation begins DerivedFrom; its number is that of the rules of this package.
const derivation = "gpu_time/1 "

// lateReason is the correction reason of a later revision.
const lateReason = "telemetry came late"

// Owner is who has a device, or a share of one. The zero Owner is nobody that
// anything names.
type Owner struct {
	Namespace, Pod, Job, Team, Service, Environment string
}

func (o Owner) texts() [6]string {
	return [...]string{o.Namespace, o.Pod, o.Job, o.Team, o.Service, o.Environment}
}

func (o Owner) compare(p Owner) int { return compareTexts(o.texts(), p.texts()) }

func compareTexts(a, b [6]string) int {
	for i := range a {
		if c := cmp.Compare(a[i], b[i]); c != 0 {
			return c
		}
	}
	return 0
}

// Device is what the price of a device's time depends on, and where it is.
type Device struct {
	Host, Model, Cloud, Region, Instance, Purchase string
}

func (d Device) texts() [6]string {
	return [...]string{d.Host, d.Model, d.Cloud, d.Region, d.Instance, d.Purchase}
}

// Parts per million are the unit of shares. Unknown is no share.
const (
	million       = 1_000_000
	Unknown int64 = -1
)

// Claim is one owner on a device.
type Claim struct {
	Owner Owner
	// Share of the device under time slicing, 1 to a million parts, or Unknown.
	Share int64
	// Used is the share of the time in which its kernels ran, 0 to a million parts,
	// or Unknown.
	Used int64
}

// Sample is what was seen of a device, or of one of its MIG instances, in an
// interval.
type Sample struct {
	GPU, MIG, Profile string
	// Start and End are unix microseconds. Start equal to End does not say since when:
	// then it is the end of the sample before that does not say so either, if that is no
	// longer ago than MaxGap.
	Start, End int64
	Device     Device
	MIGEnabled bool // of the whole device: only its instances say who has it
	// Relayed: a collector told it, and no agent. It accounts for the time that no
	// agent's sample of the device speaks for, and what comes of the same time and part
	// of the device is put together: a collector may send one look in pieces.
	Relayed bool
	// Used is the share of the interval in which kernels ran, 0 to a million parts, or
	// Unknown.
	Used int64
	// Claims are of distinct owners, in their order.
	Claims []Claim
}

// item is one part of a window: what becomes one event.
type item struct {
	owner   Owner
	device  Device
	profile string
	state   string
}

func (i item) compare(j item) int {
	return cmp.Or(
		i.owner.compare(j.owner), compareTexts(i.device.texts(), j.device.texts()),
		cmp.Compare(i.profile, j.profile), cmp.Compare(i.state, j.state),
	)
}

// place is one window of one device of a tenant.
type place struct {
	tenant, gpu string
	start       int64 // unix microseconds
}

// id is the event id of a revision of an item, a UUID of version 8 over
//
//	SHA-256("tallystick/gpu_time/v1" ‖ 0x00 ‖ texts ‖ start u64 ‖ length u64 ‖ revision u64)
//
// with texts tenant, GPU, owner, device, profile and state, each behind its length
// as u64.
func (p *place) id(i *item, length int64, revision uint64) string {
	b := []byte("tallystick/gpu_time/v1\x00")
	owner, device := i.owner.texts(), i.device.texts()
	for _, list := range [][]string{{p.tenant, p.gpu}, owner[:], device[:], {i.profile, i.state}} {
		for _, s := range list {
			b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
			b = append(b, s...)
		}
	}
	b = binary.BigEndian.AppendUint64(b, uint64(p.start))
	b = binary.BigEndian.AppendUint64(b, uint64(length))
	b = binary.BigEndian.AppendUint64(b, revision)
	sum := sha256.Sum256(b)
	id := sum[:16]
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// unnamed stands where an agent names no cloud or no instance: an event needs both,
// and no price book has it.
const unnamed = "unknown"

// event is the event that says what the item comes to.
func (p *place) event(i *item, length, micros int64, revision uint64, digest string) event.Event {
	e := event.Event{
		ID: p.id(i, length, revision), Tenant: p.tenant, OccurredAt: p.start * 1000, ProducerID: ProducerID,
		Provider: cmp.Or(i.device.Cloud, unnamed), Model: cmp.Or(i.device.Instance, i.device.Model, unnamed),
		Operation: Operation, Region: i.device.Region, PurchaseOption: i.device.Purchase,
		GPUMicros: micros, GPUState: i.state,
		Team: i.owner.Team, Service: i.owner.Service, Environment: i.owner.Environment,
		DerivedFrom: derivation + digest,
	}
	for _, t := range []event.Tag{
		{Key: "gpu", Value: p.gpu}, {Key: "gpu_model", Value: i.device.Model}, {Key: "host", Value: i.device.Host}, {Key: "job", Value: i.owner.Job},
		{Key: "mig", Value: i.profile}, {Key: "namespace", Value: i.owner.Namespace}, {Key: "pod", Value: i.owner.Pod}, {Key: "window_s", Value: seconds(length)},
	} {
		if t.Value != "" {
			e.Tags = append(e.Tags, t)
		}
	}
	if revision > 0 {
		e.Corrects, e.CorrectionReason = p.id(i, length, 0), lateReason
	}
	return e
}

func seconds(micros int64) string { return strconv.FormatInt(micros/million, 10) }
