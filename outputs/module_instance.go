package outputs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	plugin "github.com/hashicorp/go-plugin"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portsnare/portsnare/outputs/outputapi"
)

// maxSocketDir leaves room for the names below it in the 107 bytes that the path
// of a socket may have.
const maxSocketDir = 48

// CheckModule starts the module, has it check its settings without acting on
// them, and ends it. The error is of type [outputapi.Faults] if the settings are
// wrong; else the module cannot be used at all.
func CheckModule(ctx context.Context, c ModuleConfig, log *logrus.Entry) (outputapi.Description, error) {
	i, err := startModule(ctx, &c, log.WithField("output", c.Name), true)
	if err != nil {
		return outputapi.Description{}, err
	}
	i.end()
	return i.description, nil
}

// An instance is one start of a module: its process and the connection to it.
type instance struct {
	client      *outputapi.Client
	description outputapi.Description
	process     *process

	plugin *plugin.Client
	dir    string // for its sockets
}

// startModule starts a process of the module and hands it its settings, or has it only
// check them.
func startModule(ctx context.Context, c *ModuleConfig, log *logrus.Entry, check bool) (*instance, error) {
	program, err := c.Places.find(c.Name, c.SHA256)
	if err != nil {
		return nil, err
	}
	dir, err := makeSocketDir(c.SocketDir)
	if err != nil {
		return nil, err
	}
	i := &instance{process: newProcess(program, c.Capabilities, newModuleLog(log)), dir: dir}
	within := cmp.Or(c.StartWithin, startWithin)
	// go-plugin's clients start once, so each start has one of its own.
	i.plugin = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  outputapi.Handshake,
		Plugins:          outputapi.Plugins(),
		RunnerFunc:       i.process.prepare,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     2 * within, // introduce is less patient
		Logger:           hclog.NewNullLogger(),
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: dir},
		GRPCDialOptions: append(outputapi.DialOptions(),
			// While it connects, go-plugin does not even notice the end of the process.
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: grpcbackoff.DefaultConfig, MinConnectTimeout: within}),
			grpc.WithChainStreamInterceptor(refuseBroker)),
	})
	if err := i.introduce(ctx, c, check); err != nil {
		err = i.why(err)
		i.process.kill(nil)
		i.end()
		return nil, err
	}
	return i, nil
}

// makeSocketDir returns a new directory that only this user can enter.
func makeSocketDir(base string) (string, error) {
	if base == "" {
		base = os.TempDir()
	}
	if len(base) > maxSocketDir {
		return "", fmt.Errorf("directory for sockets %s: its path has more than %d bytes", base, maxSocketDir)
	}
	dir, err := os.MkdirTemp(base, "module-")
	if err != nil {
		return "", fmt.Errorf("directory for sockets: %w", err)
	}
	return dir, nil
}

// introduce starts the process, learns what it is and tells it its settings.
func (i *instance) introduce(ctx context.Context, c *ModuleConfig, check bool) error {
	settings, err := settingsOf(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(c.StartWithin, startWithin))
	defer cancel()
	// go-plugin knows no context, but notices the end of the process.
	defer context.AfterFunc(ctx, func() { i.process.kill(ctx.Err()) })()
	if err := i.dial(); err != nil {
		return fmt.Errorf("start %s: %w", i.process.program.path, explain(ctx, err))
	}
	// By now an interpreter has read its script, too.
	if err := i.process.program.unchanged(); err != nil {
		return err
	}
	i.description, err = i.client.Describe(ctx)
	if err != nil {
		return fmt.Errorf("ask the module what it is: %w", explain(ctx, err))
	}
	err = i.client.Configure(ctx, outputapi.Configuration{
		Settings: settings, BootID: c.BootID, StateDir: c.StateDir, HostVersion: c.HostVersion, Check: check,
	})
	if err != nil {
		return fmt.Errorf("hand the module its settings: %w", explain(ctx, err))
	}
	return nil
}

func settingsOf(c *ModuleConfig) (json.RawMessage, error) {
	if len(c.Settings) == 0 {
		return nil, nil
	}
	settings, err := json.Marshal(c.Settings)
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	return settings, nil
}

// dial starts the process and connects to it.
func (i *instance) dial() error {
	protocol, err := i.plugin.Client()
	if err != nil {
		return err
	}
	dispensed, err := protocol.Dispense(outputapi.PluginName)
	if err != nil {
		return err
	}
	i.client = dispensed.(*outputapi.Client)
	return nil
}

func (i *instance) can(ability outputapi.Ability) bool {
	return slices.Contains(i.description.Abilities, ability)
}

// why returns the end of the process as the reason for err, if it ended by itself
// or is about to: a broken connection is only the consequence.
func (i *instance) why(err error) error {
	if _, ok := errors.AsType[outputapi.Faults](err); ok || i.process.ID() == "" ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return err
	}
	select {
	case <-i.process.exited:
		return cmp.Or(i.process.fate(), err)
	case <-time.After(leaveTaking):
		return err
	}
}

// end ends the process, which may take the time to tidy up, and releases all
// that it had. No calls should be under way.
func (i *instance) end() {
	// Kill waits without limit for the answer to its request to exit.
	impatience := time.AfterFunc(exitWithin, func() { i.process.kill(nil) })
	i.plugin.Kill()
	impatience.Stop()
	i.process.kill(nil) // Kill does nothing about one that it does not know of
	i.process.close()
	_ = os.RemoveAll(i.dir)
}

// refuseBroker keeps go-plugin from opening the stream by which a module may have
// it broker connections: it would keep whatever comes.
func refuseBroker(
	ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
	open grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	if method == "/plugin.GRPCBroker/StartStream" {
		return nil, status.Error(codes.Unimplemented, "no connections are brokered")
	}
	return open(ctx, desc, conn, method, opts...)
}
