package ingest

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip"  // clients may compress
	_ "google.golang.org/grpc/encoding/proto" // the codec that Codec falls back on
	"google.golang.org/grpc/mem"
)

// ServerOptions are the options that a gRPC server needs to serve an Edge.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2("proto")}),
		// Holds for the message as sent and again decompressed.
		grpc.MaxRecvMsgSize(MaxBodyBytes),
	}
}

// rawRequest is a SendEventsRequest that was not decoded: the edge walks its
// bytes itself, so that events are decoded once and without allocation.
type rawRequest struct{ buf mem.Buffer }

func (r *rawRequest) bytes() []byte { return r.buf.ReadOnlyData() }

func (r *rawRequest) free() { r.buf.Free() }

// codec is the protobuf codec, but for rawRequest.
type codec struct{ encoding.CodecV2 }

// Unmarshal keeps the bytes of a rawRequest and decodes everything else.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if r, ok := v.(*rawRequest); ok {
		r.buf = data.MaterializeToBuffer(mem.DefaultBufferPool())
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}
