// Package outputtest is the contract that every output module keeps. A test of a
// module runs it:
//
//	func TestMain(m *testing.M) {
//		outputtest.Serve(newModule)
//		os.Exit(m.Run())
//	}
//
//	func TestContract(t *testing.T) {
//		outputtest.Run(t, newModule, outputtest.Options{World: newWorld})
//	}
package outputtest

import (
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/hashicorp/go-hclog"
	plugin "github.com/hashicorp/go-plugin"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

// Options say what a module needs to be tested.
type Options struct {
	// World makes a new world for each test. Nil: the module has no settings, and
	// nothing can be seen of what it does.
	World func(t *testing.T) World

	// Bans is how many bans there are in the test of many, 10,000 if it is zero:
	// less for modules that take long for each.
	Bans int
}

// A World is what a module is configured to act in.
type World struct {
	// Settings are the module's. Nil is none.
	Settings map[string]any

	// Banned returns who is kept out by the module's doing, in any order: hosts
	// as prefixes of their full length. Nil: that cannot be seen, which a module
	// that keeps bans should have a good reason for.
	Banned func(t *testing.T) []netip.Prefix
}

// moduleEnv marks the process that is to be the module.
const moduleEnv = "PORTSNARE_OUTPUTTEST"

// Serve is the first thing that TestMain calls: in the process that [Run] starts
// as a module it is the module and does not return.
func Serve(newModule func() outputapi.Module) {
	if os.Getenv(moduleEnv) != "" {
		outputapi.Serve(newModule())
	}
}

// Run tests a module twice: in this process, and as a process of its own that is
// spoken to as Portsnare does, by go-plugin and with mutual TLS.
func Run(t *testing.T, newModule func() outputapi.Module, o Options) {
	t.Helper()
	d, err := outputapi.Describe(newModule())
	if err != nil {
		t.Fatal(err)
	}
	starts := map[string]func(*testing.T) module{
		"in process":   func(*testing.T) module { return &inProcess{newModule()} },
		"as a process": startProcess,
	}
	for name, start := range starts {
		t.Run(name, func(t *testing.T) {
			s := &suite{Options: o, start: start, can: func(a outputapi.Ability) bool { return slices.Contains(d.Abilities, a) }}
			s.run(t)
		})
	}
}

// A module is what the tests call.
type module interface {
	Configure(ctx context.Context, c outputapi.Configuration) error
	Deliver(ctx context.Context, bootID string, events []detector.Event) error
	SetBans(ctx context.Context, bans []detector.Ban) ([]outputapi.Result, error)
	ChangeBans(ctx context.Context, add, remove []detector.Ban) ([]outputapi.Result, error)
	Flush(ctx context.Context) error

	Describe(ctx context.Context) (outputapi.Description, error)
}

var _ module = (*outputapi.Client)(nil)

// inProcess calls a module's methods. Which it has, the suite knows.
type inProcess struct{ outputapi.Module }

func (m *inProcess) Describe(context.Context) (outputapi.Description, error) {
	return outputapi.Describe(m.Module)
}

func (m *inProcess) Deliver(ctx context.Context, _ string, events []detector.Event) error {
	return m.Module.(outputapi.Deliverer).Deliver(ctx, slices.Clone(events))
}

func (m *inProcess) SetBans(ctx context.Context, bans []detector.Ban) ([]outputapi.Result, error) {
	return m.Module.(outputapi.BanKeeper).SetBans(ctx, slices.Clone(bans))
}

func (m *inProcess) ChangeBans(ctx context.Context, add, remove []detector.Ban) ([]outputapi.Result, error) {
	return m.Module.(outputapi.BanKeeper).ChangeBans(ctx, slices.Clone(add), slices.Clone(remove))
}

func (m *inProcess) Flush(ctx context.Context) error {
	return m.Module.(outputapi.Flusher).Flush(ctx)
}

// startProcess starts this test binary as the module. It is killed after the
// test.
func startProcess(t *testing.T) module {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Without Serve it runs no test, and go-plugin says that it is no module.
	cmd := exec.Command(self, "-test.run=^$")
	cmd.Dir = "/"
	// The race detector would make each process wait for a second at its end.
	cmd.Env = []string{moduleEnv + "=1", "TMPDIR=" + t.TempDir(), "GORACE=atexit_sleep_ms=0"}
	process := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  outputapi.Handshake,
		Plugins:          outputapi.Plugins(),
		Cmd:              cmd,
		SkipHostEnv:      true,
		AutoMTLS:         true,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		GRPCDialOptions:  outputapi.DialOptions(),
		Logger:           hclog.NewNullLogger(),
	})
	t.Cleanup(process.Kill)
	connection, err := process.Client()
	if err != nil {
		t.Fatalf("start the test binary as a module; does TestMain call outputtest.Serve? %v", err)
	}
	client, err := connection.Dispense(outputapi.PluginName)
	if err != nil {
		t.Fatal(err)
	}
	return client.(*outputapi.Client)
}

// A suite is the contract for one way to start the module.
type suite struct {
	Options
	start func(*testing.T) module
	can   func(outputapi.Ability) bool
}

func (s *suite) run(t *testing.T) {
	t.Run("it says what it is", s.testDescription)
	t.Run("settings", s.testSettings)
	if s.can(outputapi.Delivers) {
		t.Run("events", s.testEvents)
	}
	if s.can(outputapi.KeepsBans) {
		t.Run("bans", s.testBans)
	}
}

// A place is a world and the directory that outlives the modules in it.
type place struct {
	World
	stateDir string
}

func (s *suite) newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{stateDir: t.TempDir()}
	if s.World != nil {
		p.World = s.World(t)
	}
	return p
}

// configuration returns that of the place, with more settings.
func (p *place) configuration(t *testing.T, more map[string]any) outputapi.Configuration {
	t.Helper()
	all := make(map[string]any)
	maps.Copy(all, p.Settings)
	maps.Copy(all, more)
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return outputapi.Configuration{Settings: text, BootID: "outputtest", StateDir: p.stateDir, HostVersion: "0.0.0"}
}

// open starts a module in a place, which close brings to rest.
func (s *suite) open(t *testing.T, p *place) module {
	t.Helper()
	m := s.start(t)
	if err := m.Configure(t.Context(), p.configuration(t, nil)); err != nil {
		t.Fatalf("configure: %v", err)
	}
	return m
}

// close has a module come to rest, as Portsnare does before it ends one.
func (s *suite) close(t *testing.T, m module) {
	t.Helper()
	if !s.can(outputapi.Flushes) {
		return
	}
	if err := m.Flush(context.WithoutCancel(t.Context())); err != nil {
		t.Errorf("flush: %v", err)
	}
}
