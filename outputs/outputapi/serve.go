package outputapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	plugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

// Serve is the main function of a module. It serves m to the Portsnare that
// started the program and exits when that is done with it.
//
// Portsnare ends a module once it has drained it, so that SIGTERM, SIGINT and
// SIGHUP, which a service manager or a terminal send to all processes alike, do
// nothing. Commands that the module starts get them as usual.
//
// Started by a person, the program explains itself; with "--describe" it prints
// its [Description] as JSON.
func Serve(m Module) {
	os.Exit(serve(m, os.Args, os.Stdout, os.Stderr))
}

// The exit statuses of a module.
const (
	exitDone  = 0
	exitFault = 1 // the module is no good
	exitUsage = 2 // it was not started by Portsnare
)

func serve(m Module, args []string, stdout, stderr io.Writer) int {
	d, err := Describe(m)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitFault
	}
	switch {
	case len(args) > 1 && args[1] == "--describe":
		return printDescription(stdout, stderr, d)
	case len(args) > 1 && args[1] == "--help":
		explain(stdout, d, args[0])
		return exitDone
	case os.Getenv(Handshake.MagicCookieKey) != Handshake.MagicCookieValue:
		explain(stderr, d, args[0])
		return exitUsage
	}
	shrugOff()
	slog.SetDefault(slog.New(newLogHandler(stderr)))
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: Handshake,
		Plugins:         plugin.PluginSet{PluginName: &glue{module: m}},
		GRPCServer:      newGRPCServer,
	})
	return exitDone
}

// shrugOff makes signals do nothing. They are caught, not ignored, because
// programs that the module starts would inherit the latter. SIGPIPE comes when
// the daemon died and something is logged.
func shrugOff() {
	// Nobody reads the channel: os/signal drops what does not fit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
}

func printDescription(stdout, stderr io.Writer, d Description) int {
	type description struct {
		Name         string    `json:"name"`
		Version      string    `json:"version"`
		Summary      string    `json:"summary"`
		Abilities    []Ability `json:"abilities"`
		Capabilities []string  `json:"capabilities"`
	}
	capabilities := append([]string{}, d.Capabilities...) // [], never null
	text, err := json.MarshalIndent(description{d.Name, d.Version, d.Summary, d.Abilities, capabilities}, "", "  ")
	if err == nil {
		_, err = fmt.Fprintf(stdout, "%s\n", text)
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitFault
	}
	return exitDone
}

// explain tells a person what the program at path is for.
func explain(w io.Writer, d Description, path string) {
	file := filepath.Base(path)
	fmt.Fprintf(w, `%s %s is an output module of Portsnare: %s

Portsnare starts it, and by itself it does nothing. To use it, as root:

  install -m 755 %s /usr/local/lib/portsnare/outputs/%s

add a block to /etc/portsnare/portsnare.toml,

  [output.%s]

and then run:

  portsnare config check
  portsnare reload

With --describe it prints as JSON what it is and needs.
`, d.Name, d.Version, d.Summary, path, file, file)
}

// newGRPCServer adds the protocol's limits to what go-plugin asks for, and turns
// the panics of module code into errors.
func newGRPCServer(options []grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(options,
		grpc.MaxRecvMsgSize(outputv1.MaxMessage),
		grpc.MaxSendMsgSize(outputv1.MaxMessage),
		grpc.UnaryInterceptor(guardCall),
		grpc.StreamInterceptor(guardStream),
	)...)
}

func guardCall(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	err = guard(info.FullMethod, func() error {
		answer, err = handle(ctx, request)
		return err
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

func guardStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return guard(info.FullMethod, func() error { return handle(server, stream) })
}

// guard calls f and returns its error as a status with a text that is fit to
// travel. A panic becomes one, too.
func guard(method string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			slog.Error("the module panicked", "call", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, outputv1.Text(fmt.Sprint("the module panicked: ", p), maxFaultText))
		}
	}()
	return tame(f())
}

// tame returns a module's error as a status whose text is short and harmless,
// nil for nil.
func tame(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err) // Unknown unless err is a context's
	}
	return status.Error(s.Code(), outputv1.Text(s.Message(), maxFaultText))
}
