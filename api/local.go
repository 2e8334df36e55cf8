package api

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// local is a connection to the services of this process. REST comes by it, so
// that a call takes the same way through the table of access as by gRPC.
type local struct {
	intercept grpc.UnaryServerInterceptor
	methods   map[string]localMethod
}

// localMethod is a service's method and its implementation.
type localMethod struct {
	srv  any
	call func(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error)
}

var (
	_ grpc.ServiceRegistrar    = (*local)(nil)
	_ grpc.ClientConnInterface = (*local)(nil)
)

func newLocal(intercept grpc.UnaryServerInterceptor) *local {
	return &local{intercept: intercept, methods: map[string]localMethod{}}
}

// RegisterService implements grpc.ServiceRegistrar.
func (l *local) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, m := range desc.Methods {
		l.methods["/"+desc.ServiceName+"/"+m.MethodName] = localMethod{impl, m.Handler}
	}
}

// names lists the methods.
func (l *local) names() []string {
	names := make([]string, 0, len(l.methods))
	for name := range l.methods {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Invoke implements grpc.ClientConnInterface. Request and answer are handed on
// without a copy of what is in them; nobody changes them afterwards.
func (l *local) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	m, ok := l.methods[method]
	if !ok {
		return errUnimplemented
	}
	res, err := m.call(m.srv, ctx, func(req any) error {
		hand(req, args)
		return nil
	}, l.intercept)
	if err != nil {
		return err
	}
	hand(reply, res)
	return nil
}

// NewStream implements grpc.ClientConnInterface: the API has no streams.
func (l *local) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errUnimplemented
}

// hand gives dst the fields of src, both messages of one type.
func hand(dst, src any) {
	to, from := dst.(proto.Message).ProtoReflect(), src.(proto.Message).ProtoReflect()
	from.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		to.Set(fd, v)
		return true
	})
}
