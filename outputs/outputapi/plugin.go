package outputapi

import (
	"context"

	plugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

// Handshake is what Portsnare and its modules know each other by. The cookie
// proves nothing; without it a module tells a person what it is for.
var Handshake = plugin.HandshakeConfig{
	ProtocolVersion:  1,
	MagicCookieKey:   "PORTSNARE_OUTPUT",
	MagicCookieValue: "5b0b1f6e-3d6c-4c1f-9a53-8f4f0d2c7e11",
}

// PluginName is the only name in [Plugins].
const PluginName = "output"

// Plugins is for the host: what to give go-plugin's client. PluginName dispenses
// a [*Client].
func Plugins() plugin.PluginSet { return plugin.PluginSet{PluginName: &glue{}} }

// DialOptions is for the host: go-plugin by itself lifts gRPC's limit, so that a
// module could answer with any number of bytes.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(outputv1.MaxMessage),
			grpc.MaxCallSendMsgSize(outputv1.MaxMessage),
		),
		grpc.WithMaxHeaderListSize(64 << 10), // an error's text travels in a header
	}
}

// glue registers a module with go-plugin's server, and makes a client of a
// connection.
type glue struct {
	plugin.NetRPCUnsupportedPlugin
	module Module // nil in the host
}

var _ plugin.GRPCPlugin = (*glue)(nil)

// GRPCServer registers the module's service.
func (g *glue) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	outputv1.RegisterOutputServer(s, newServer(g.module))
	return nil
}

// GRPCClient returns a *Client.
func (g *glue) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return NewClient(conn), nil
}
