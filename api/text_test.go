package api

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

func TestCheckText(t *testing.T) {
	for _, c := range []struct {
		req  proto.Message
		want string // the field that is refused
	}{
		{&pb.AddSecretRequest{TenantId: "acme", Name: "a name\n", Value: "☃"}, ""},
		{&pb.AddSecretRequest{Name: "a\x00"}, "name"},
		{&pb.CreateTokenRequest{Scopes: []string{"read", "\x00"}}, "scopes"},
		{&pb.SummaryRequest{Window: &pb.Window{TimeZone: "\x00UTC"}}, "window.time_zone"},
		{&pb.SummaryRequest{Filters: []*pb.Filter{{Dimension: "team"}, {Values: []string{"x", "y\x00"}}}}, "filters.values"},
		{&pb.UsageEvent{Tags: map[string]string{"k\x00": "v"}}, "tags"},
		{&pb.UsageEvent{Tags: map[string]string{"k": "v\x00"}}, "tags"},
		{&pb.UsageEvent{Tags: map[string]string{"k": "v"}, Tokens: &pb.TokenCounts{Input: 1}}, ""},
	} {
		err := checkText(c.req)
		var wrong *InvalidError
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%v: refused: %v", c.req, err)
		case c.want != "" && (!errors.As(err, &wrong) || wrong.Violations[0].Field != c.want):
			t.Errorf("%v: %v, want a refusal of %s", c.req, err, c.want)
		}
	}
	if err := checkText(download{"acme"}); err != nil {
		t.Errorf("a request without a message: %v", err)
	}
}
