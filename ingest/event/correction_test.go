package event_test

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	tallystickv1 "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest/event"
)

func TestValidateHoldsCorrections(t *testing.T) {
	for _, tc := range []struct {
		name, corrects, reason, field, rule string
	}{
		{"usage", "", "", "", ""},
		{"a correction", "other", "", "", ""},
		{"a correction with its reason", "other", "invoice of October", "", ""},
		{"a reason alone", "", "invoice", "corrects", event.RuleRequired},
		{"itself", "0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", "", "corrects", event.RuleOriginal},
		{"too long an id", strings.Repeat("x", event.MaxIDBytes+1), "", "corrects", event.RuleMaxBytes},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := full(t)
			e.ID, e.Corrects, e.CorrectionReason = "0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", tc.corrects, tc.reason
			err := e.Validate(false)
			var fe *event.FieldError
			if tc.rule == "" && err != nil || tc.rule != "" && (!errors.As(err, &fe) || fe.Field != tc.field || fe.Rule != tc.rule) {
				t.Errorf("%v, want %s: %s", err, tc.field, tc.rule)
			}
		})
	}
}

func TestRerateRecord(t *testing.T) {
	want := event.Rerate{ID: "id", Tenant: "acme", Corrects: "e-1", AskedAt: 1_795_345_198_000_000_007}
	b := event.AppendRerateRecord(nil, &want)
	var m tallystickv1.LogRecord
	if err := proto.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	message := &tallystickv1.LogRecord{Body: &tallystickv1.LogRecord_Rerate{Rerate: &tallystickv1.Rerate{
		EventId: "id", TenantId: "acme", Corrects: "e-1", AskedAt: &timestamppb.Timestamp{Seconds: 1_795_345_198, Nanos: 7},
	}}}
	if !proto.Equal(&m, message) {
		t.Errorf("the generated code reads %v", &m)
	}
	rec, err := event.SplitRecord(b)
	if err != nil || rec.Kind != event.RerateRecord {
		t.Fatalf("SplitRecord: %+v, %v", rec, err)
	}
	if got, err := event.DecodeRerate(rec.Body); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if id, ok := event.PeekID(rec.Body); !ok || id != "id" {
		t.Errorf("PeekID = %q, %v", id, ok)
	}
	for what, change := range map[string]func(*event.Rerate){
		"no id": func(r *event.Rerate) { r.ID = "" }, "no tenant": func(r *event.Rerate) { r.Tenant = "" },
		"no original": func(r *event.Rerate) { r.Corrects = "" }, "no time": func(r *event.Rerate) { r.AskedAt = 0 },
		"itself":             func(r *event.Rerate) { r.Corrects = r.ID },
		"a control in an id": func(r *event.Rerate) { r.ID = "a\nb" },
		"too long an id":     func(r *event.Rerate) { r.Corrects = strings.Repeat("x", event.MaxIDBytes+1) },
	} {
		bad := want
		change(&bad)
		rec, err := event.SplitRecord(event.AppendRerateRecord(nil, &bad))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := event.DecodeRerate(rec.Body); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}

func FuzzDecodeRerate(f *testing.F) {
	rec, err := event.SplitRecord(event.AppendRerateRecord(nil, &event.Rerate{ID: "id", Tenant: "acme", Corrects: "e-1", AskedAt: 1e18}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rec.Body)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := event.DecodeRerate(b)
		if err != nil {
			mustBeFieldError(t, err)
			return
		}
		again, err := event.SplitRecord(event.AppendRerateRecord(nil, &r))
		if err != nil {
			t.Fatal(err)
		}
		if s, err := event.DecodeRerate(again.Body); err != nil || s != r {
			t.Fatalf("%+v became %+v, %v", r, s, err)
		}
	})
}
