package outputs

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	plugin "github.com/hashicorp/go-plugin"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

// The modules of these tests are this test binary, started under one of these
// names.
var characters = map[string]func(){
	"good":        func() { outputapi.Serve(&diary{}) },
	"events-only": func() { outputapi.Serve(&eventsOnly{}) },
	"bans-only":   func() { outputapi.Serve(&bansOnly{}) },
	"rogue":       serveRogue,
	"host":        hostMain,
	"mute":        func() { select {} }, // never says how to reach it
	"crashing":    func() { panic("no such luck") },
	"elsewhere":   func() { fmt.Println("1|1|tcp|192.0.2.1:80|grpc"); select {} },
	"silent":      beSilent,
	"babbling":    func() { fmt.Println(strings.Repeat("blah ", 100_000)); select {} },
}

func TestMain(m *testing.M) {
	if be, ok := characters[os.Args[0]]; ok {
		exitAtOnce()
		be()
		return
	}
	os.Exit(m.Run())
}

// exitAtOnce keeps the race detector from sleeping for a second at the end of
// the process, for which it has to be started again.
func exitAtOnce() {
	const variable, value = "GORACE", "atexit_sleep_ms=0"
	info, _ := debug.ReadBuildInfo()
	if info == nil || !slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return
	}
	if os.Getenv(variable) != value {
		panic(syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), variable+"="+value)))
	}
	if err := os.Unsetenv(variable); err != nil {
		panic(err)
	}
}

// testPlaces has every character in the bundle, which is this binary.
func testPlaces(tb testing.TB) ModulePlaces {
	tb.Helper()
	self, err := executablePath()
	if err != nil {
		tb.Fatal(err)
	}
	var names []string
	for name := range characters {
		names = append(names, name)
	}
	return ModulePlaces{Bundle: self, Bundled: names}
}

// A diary is a module that keeps its promises and writes down what it was told.
type diary struct {
	file *os.File
	mu   sync.Mutex
}

type diarySettings struct {
	Diary string `json:"diary"`
	Tell  bool   `json:"tell"` // log what the process is like
	Slow  string `json:"slow"` // how long each call takes
}

func (d *diary) Info() outputapi.Info {
	return outputapi.Info{Name: "diary", Version: "1.2.3", Summary: "Writes down what it is told."}
}

func (d *diary) Configure(_ context.Context, c outputapi.Configuration) error {
	var s diarySettings
	if err := c.Decode(&s); err != nil {
		return err
	}
	if s.Tell {
		tellOfProcess()
	}
	if s.Diary == "" || c.Check {
		return nil
	}
	var err error
	d.file, err = os.OpenFile(s.Diary, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	d.write("configure %s", c.BootID)
	return err
}

func (d *diary) write(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file != nil {
		fmt.Fprintf(d.file, format+"\n", args...)
	}
}

func (d *diary) Deliver(_ context.Context, events []detector.Event) error {
	d.write("deliver %d-%d", events[0].Sequence, events[len(events)-1].Sequence)
	return nil
}

func (d *diary) SetBans(_ context.Context, bans []detector.Ban) ([]outputapi.Result, error) {
	d.write("set %s", sourcesOf(bans))
	return nil, nil
}

func (d *diary) ChangeBans(_ context.Context, add, remove []detector.Ban) ([]outputapi.Result, error) {
	d.write("add %s remove %s", sourcesOf(add), sourcesOf(remove))
	results := make([]outputapi.Result, len(add))
	for i := range add {
		results[i].Acts = []detector.Act{{Kind: detector.ActCommand, Text: "ban " + add[i].Source.String()}}
	}
	return results, nil
}

func (d *diary) Flush(context.Context) error {
	d.write("flush")
	return nil
}

func sourcesOf(bans []detector.Ban) string {
	var sources []string
	for i := range bans {
		sources = append(sources, bans[i].Source.Addr().String())
	}
	return "[" + strings.Join(sources, " ") + "]"
}

// tellOfProcess logs what a process knows of itself.
func tellOfProcess() {
	var files []string
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	for _, entry := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil {
			files = append(files, entry.Name()+"="+target)
		}
	}
	state, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	sockets := os.Getenv(plugin.EnvUnixSocketDir)
	info, err := os.Stat(filepath.Dir(sockets))
	if err != nil {
		panic(err)
	}
	slog.Info("the process", "environment", os.Environ(), "files", files, "dir", dir, "state", string(state),
		"sockets", sockets, "mode", info.Mode().String(), "group", syscall.Getpgrp(), "output", "forged")
	slog.Warn("a warning", "number", 7, "@odd", true)
}

// eventsOnly is a module without bans.
type eventsOnly struct{}

func (eventsOnly) Info() outputapi.Info                                     { return outputapi.Info{Name: "events"} }
func (eventsOnly) Configure(context.Context, outputapi.Configuration) error { return nil }
func (eventsOnly) Deliver(context.Context, []detector.Event) error          { return nil }

// bansOnly is a module without events.
type bansOnly struct{}

func (bansOnly) Info() outputapi.Info                                     { return outputapi.Info{Name: "bans"} }
func (bansOnly) Configure(context.Context, outputapi.Configuration) error { return nil }

func (bansOnly) SetBans(context.Context, []detector.Ban) ([]outputapi.Result, error) {
	return nil, nil
}

func (bansOnly) ChangeBans(context.Context, []detector.Ban, []detector.Ban) ([]outputapi.Result, error) {
	return nil, nil
}

// A rogue is a module that breaks the protocol as its setting "mood" says.
type rogue struct {
	outputv1.UnimplementedOutputServer
	plugin.NetRPCUnsupportedPlugin

	mu       sync.Mutex
	settings rogueSettings
	calls    int
}

type rogueSettings struct {
	Mood string `json:"mood"`
	Note string `json:"note"` // a file for what the test is to know
}

// beSilent says how to reach it and answers nobody, and neither does its child,
// which stays reachable after it.
func beSilent() {
	path := filepath.Join(os.Getenv(plugin.EnvUnixSocketDir), "silent")
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		panic(err)
	}
	file, err := socket.File()
	if err != nil {
		panic(err)
	}
	child := exec.Command("/bin/sleep", "12")
	child.ExtraFiles, child.SysProcAttr = []*os.File{file}, &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		panic(err)
	}
	fmt.Printf("1|1|unix|%s|grpc|\n", path)
	select {}
}

// What go-plugin puts its own in place of.
var realStdout, realStderr = os.Stdout, os.Stderr

func serveRogue() {
	signal.Ignore(syscall.SIGTERM)
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: outputapi.Handshake,
		Plugins:         plugin.PluginSet{outputapi.PluginName: &rogue{}},
		GRPCServer:      plugin.DefaultGRPCServer,
	})
}

func (r *rogue) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	outputv1.RegisterOutputServer(s, r)
	return nil
}

func (r *rogue) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this is a module")
}

// in reports whether the module is in one of the moods.
func (r *rogue) in(moods ...string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(moods, r.settings.Mood)
}

func (r *rogue) Describe(context.Context, *outputv1.DescribeRequest) (*outputv1.DescribeResponse, error) {
	return &outputv1.DescribeResponse{
		Name: "rogue", Version: strings.Repeat("9", 1000) + "\n", Summary: "Lies.\x1b[31m",
		Abilities: []outputv1.Ability{
			outputv1.Ability_ABILITY_DELIVER, outputv1.Ability_ABILITY_KEEP_BANS, outputv1.Ability_ABILITY_FLUSH,
		},
	}, nil
}

func (r *rogue) Configure(_ context.Context, m *outputv1.ConfigureRequest) (*outputv1.ConfigureResponse, error) {
	r.mu.Lock()
	err := json.Unmarshal([]byte(m.GetSettings()), &r.settings)
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	switch {
	case r.in("hangs in Configure"):
		select {}
	case r.in("dies in Configure"):
		fmt.Fprintln(realStderr, "the dog ate my settings")
		os.Exit(3)
	case r.in("floods its log"):
		for i := range 20_000 {
			fmt.Fprintf(realStderr, `{"@level":"info","@message":"flood","n":%d}`+"\n", i)
		}
	case r.in("logs poison"):
		for _, line := range []string{
			`{"@message":1}`, `{"@message":"x","@level":7}`, `{"@message":"x","@timestamp":[]}`,
			`{"@message":"x","@level":"fatal"}`, `{"@message":"x","@level":"panic"}`,
			"\x1b[2Jclear\x00", strings.Repeat("long ", 10_000),
		} {
			fmt.Fprintln(realStderr, line)
		}
	case r.in("has children"):
		return &outputv1.ConfigureResponse{}, r.beget()
	}
	return &outputv1.ConfigureResponse{}, nil
}

// beget starts two children that hold the module's outputs open: one in its
// group, one in a session of its own.
func (r *rogue) beget() error {
	var pids []string
	for _, attr := range []*syscall.SysProcAttr{{}, {Setsid: true}} {
		child := exec.Command("/bin/sleep", "300")
		child.Stdout, child.Stderr, child.SysProcAttr = realStdout, realStderr, attr
		if err := child.Start(); err != nil {
			return err
		}
		pids = append(pids, fmt.Sprint(child.Process.Pid))
	}
	return os.WriteFile(r.settings.Note, []byte(strings.Join(pids, " ")), 0o600)
}

func (r *rogue) Deliver(_ context.Context, m *outputv1.DeliverRequest) (*outputv1.DeliverResponse, error) {
	r.mu.Lock()
	r.calls++
	calls := r.calls
	r.mu.Unlock()
	last := m.GetLastSequence()
	switch {
	case r.in("hangs in Deliver"):
		select {}
	case r.in("dies in Deliver"):
		os.Exit(4)
	case r.in("stops"):
		if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
			return nil, err
		}
		select {} // the signal takes a moment
	case r.in("answers 8 MB"):
		reason := strings.Repeat("no ", 8<<20/3)
		return &outputv1.DeliverResponse{AcceptedThrough: last, Error: reason}, nil
	case r.in("fails at length"):
		return nil, status.Error(codes.Unknown, strings.Repeat("no ", 256<<10/3))
	case r.in("fails in color"):
		return nil, status.Error(codes.Unknown, "\x1b[31mred\nalert\x1b[0m")
	case r.in("accepts what was not sent"):
		return &outputv1.DeliverResponse{AcceptedThrough: 1 << 60}, nil
	case r.in("rejects what was not sent"):
		return &outputv1.DeliverResponse{
			AcceptedThrough: last, Rejected: []*outputv1.Rejection{{Sequence: last + 7, Reason: "no"}},
		}, nil
	case r.in("rejects one"):
		return &outputv1.DeliverResponse{
			AcceptedThrough: last, Rejected: []*outputv1.Rejection{{Sequence: last, Reason: "too\nlong"}},
		}, nil
	case r.in("takes half") && calls == 1:
		return &outputv1.DeliverResponse{AcceptedThrough: last / 2, Error: "one at a time"}, nil
	case r.in("takes half"):
		return &outputv1.DeliverResponse{AcceptedThrough: last}, os.WriteFile(r.settings.Note,
			fmt.Append(nil, m.GetEvents()[0].GetSequence()), 0o600)
	}
	return &outputv1.DeliverResponse{AcceptedThrough: last}, nil
}

func (r *rogue) SetBans(s grpc.BidiStreamingServer[outputv1.SetBansRequest, outputv1.BanResponse]) error {
	if r.in("hangs in SetBans") {
		select {}
	}
	for {
		if _, err := s.Recv(); err != nil {
			break
		}
	}
	if r.in("refuses bans") {
		return s.Send(&outputv1.BanResponse{Results: []*outputv1.Result{{}, {Error: "no\nroom"}}})
	}
	return nil
}

func (r *rogue) ChangeBans(s grpc.BidiStreamingServer[outputv1.ChangeBansRequest, outputv1.BanResponse]) error {
	for {
		if _, err := s.Recv(); err != nil {
			break
		}
	}
	switch {
	case r.in("hangs in ChangeBans"):
		select {}
	case r.in("answers too much"):
		return s.Send(&outputv1.BanResponse{Results: []*outputv1.Result{{}, {}, {}}})
	case r.in("answers too little"):
		return s.Send(&outputv1.BanResponse{Results: []*outputv1.Result{{}}})
	case r.in("never ceases to answer"):
		for {
			if err := s.Send(&outputv1.BanResponse{}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *rogue) Flush(context.Context, *outputv1.FlushRequest) (*outputv1.FlushResponse, error) {
	if r.in("hangs in Flush") {
		select {}
	}
	return &outputv1.FlushResponse{}, nil
}

// hostMain is a daemon with one module. It prints the module's process and, when
// it is told to stop, delivers an event and ends in peace.
func hostMain() {
	self, err := executablePath()
	if err != nil {
		panic(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	m := NewModule(ModuleConfig{
		Name: "good", Places: ModulePlaces{Bundle: self, Bundled: []string{"good"}},
		SocketDir: os.Getenv("SOCKETS"), Settings: map[string]any{"diary": os.Getenv("DIARY")},
	}, logrus.NewEntry(log))
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := m.Run(ctx); err != nil {
			panic(err)
		}
	})
	<-m.Settled()
	fmt.Println(m.Status().PID)
	<-told
	if err := m.Deliver(ctx, someEvents(1)); err != nil {
		panic(err)
	}
	cancel()
	running.Wait()
}

// someEvents returns n events of different sources.
func someEvents(n int) []detector.Event {
	events := make([]detector.Event, n)
	for i := range events {
		source := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
		events[i] = detector.Event{
			At: time.Unix(1_800_000_000, 0), Sequence: uint64(i + 1), Action: detector.ScanDetected,
			Probe: detector.Probe{
				At:        time.Unix(1_800_000_000, 0),
				Source:    netip.AddrPortFrom(source, 40000),
				Target:    netip.MustParseAddrPort("203.0.113.1:23"),
				Proto:     detector.TCP,
				Technique: detector.TechniqueSYN,
				Interface: "eth0",
			},
			Triggered: detector.True,
		}
	}
	return events
}

func bansOf(sources ...string) []detector.Ban {
	var bans []detector.Ban
	for _, s := range sources {
		addr := netip.MustParseAddr(s)
		bans = append(bans, detector.Ban{Source: netip.PrefixFrom(addr, addr.BitLen()), Origin: "portsnare"})
	}
	return bans
}

// firstLine returns the first line that r gives.
func firstLine(t *testing.T, r io.Reader) string {
	t.Helper()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}
