package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	plugin "github.com/hashicorp/go-plugin"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/portsnare/portsnare/internal/mantest"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

// noSleep is for GORACE: the race detector would make each process wait for a
// second at its end.
const noSleep = "atexit_sleep_ms=0"

// The test binary is the program, by its name and those of the modules.
func TestMain(m *testing.M) {
	programs := map[string]func(){"portsnare-outputs": main}
	for name := range modules {
		programs[name] = main
	}
	testscript.Main(m, programs)
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("GORACE", noSleep)
			return nil
		},
	})
}

// Each module serves, whichever way the program is told to be it.
func TestModulesServe(t *testing.T) {
	for name := range modules {
		starts := map[string][]string{
			"by its name":           {name},
			"by the path of a link": {"/usr/lib/portsnare/outputs/" + name},
			"by an argument":        {"portsnare-outputs", name},
		}
		for how, args := range starts {
			t.Run(name+" "+how, func(t *testing.T) {
				d, err := start(t, args).Describe(t.Context())
				if err != nil || d.Name != name {
					t.Errorf("started as %q, it is %q, %v", args, d.Name, err)
				}
			})
		}
	}
}

func start(t *testing.T, args []string) *outputapi.Client {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	process := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: outputapi.Handshake,
		Plugins:         outputapi.Plugins(),
		Cmd: &exec.Cmd{
			Path: self, Args: args, Dir: "/",
			Env: []string{"TMPDIR=" + t.TempDir(), "GORACE=" + noSleep},
		},
		SkipHostEnv:      true,
		AutoMTLS:         true,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		GRPCDialOptions:  outputapi.DialOptions(),
		Logger:           hclog.NewNullLogger(),
	})
	t.Cleanup(process.Kill)
	connection, err := process.Client()
	if err != nil {
		t.Fatal(err)
	}
	client, err := connection.Dispense(outputapi.PluginName)
	if err != nil {
		t.Fatal(err)
	}
	return client.(*outputapi.Client)
}

func TestManualPage(t *testing.T) {
	page := filepath.Join("..", "..", "packaging", "deb", "man", "portsnare-outputs.8")
	mantest.Lint(t, page)
	mantest.Explains(t, page, "Fl", append(mantest.Flags(newFlags(new(options))), "-describe"))
	mantest.Explains(t, page, "Cm", names())
}
