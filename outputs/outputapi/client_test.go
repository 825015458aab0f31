package outputapi

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

// A liar is a module that does not keep to the protocol.
type liar struct {
	outputv1.UnimplementedOutputServer
	describe  *outputv1.DescribeResponse
	configure *outputv1.ConfigureResponse
	deliver   *outputv1.DeliverResponse
	early     bool // answers ban calls at once
	results   []*outputv1.BanResponse
	changes   []*outputv1.BanChange
	fail      error // of WatchBans
}

func (l *liar) Describe(context.Context, *outputv1.DescribeRequest) (*outputv1.DescribeResponse, error) {
	return l.describe, nil
}

func (l *liar) Configure(context.Context, *outputv1.ConfigureRequest) (*outputv1.ConfigureResponse, error) {
	return l.configure, nil
}

func (l *liar) Deliver(context.Context, *outputv1.DeliverRequest) (*outputv1.DeliverResponse, error) {
	return l.deliver, nil
}

func (l *liar) SetBans(stream outputv1.Output_SetBansServer) error {
	if !l.early {
		for {
			if _, err := stream.Recv(); err != nil {
				break
			}
		}
	}
	for _, m := range l.results {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (l *liar) WatchBans(_ *outputv1.WatchBansRequest, stream outputv1.Output_WatchBansServer) error {
	for _, m := range l.changes {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return l.fail
}

// call returns a Client of the liar's.
func (l *liar) call(t *testing.T) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	outputv1.RegisterOutputServer(s, l)
	served := make(chan error)
	go func() { served <- s.Serve(listener) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	options := append(DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("unix:"+socket, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return NewClient(conn)
}

var (
	event = detector.Event{Sequence: 5}
	ban   = detector.Ban{Source: netip.MustParsePrefix("203.0.113.7/32")}
)

func TestLies(t *testing.T) {
	deliver := func(c *Client) error {
		return c.Deliver(context.Background(), "boot", []detector.Event{event})
	}
	setBans := func(c *Client) error {
		_, err := c.SetBans(context.Background(), []detector.Ban{ban, ban})
		return err
	}
	watch := func(c *Client) error {
		return c.WatchBans(context.Background(), func(BanChange) error { return errors.New("it was told") })
	}
	describe := func(c *Client) error {
		_, err := c.Describe(context.Background())
		return err
	}
	results := func(n int) []*outputv1.BanResponse {
		return []*outputv1.BanResponse{{Results: slices.Repeat([]*outputv1.Result{{}}, n)}}
	}
	huge := strings.Repeat("x", 8<<20)
	tests := map[string]struct {
		liar liar
		call func(*Client) error
		want string // a part of the error
	}{
		"no name":                 {liar{describe: &outputv1.DescribeResponse{}}, describe, "does not say its name"},
		"8 MiB of description":    {liar{describe: &outputv1.DescribeResponse{Name: huge}}, describe, "larger than max"},
		"accepts nothing":         {liar{deliver: &outputv1.DeliverResponse{}}, deliver, "accepted events through 0 of 5"},
		"rejects more than came":  {liar{deliver: &outputv1.DeliverResponse{AcceptedThrough: 5, Rejected: slices.Repeat([]*outputv1.Rejection{{Sequence: 5}}, 2)}}, deliver, "rejected 2 of 1 events"},
		"rejects what never came": {liar{deliver: &outputv1.DeliverResponse{AcceptedThrough: 9, Rejected: []*outputv1.Rejection{{Sequence: 9}}}}, deliver, "rejected event 9"},
		"too few results":         {liar{results: results(1)}, setBans, "2 bans with 1 results"},
		"too many results":        {liar{results: results(3)}, setBans, "2 bans with more results"},
		"results without end":     {liar{results: slices.Repeat(results(1), 100_000)}, setBans, "2 bans with more results"},
		"8 MiB of results":        {liar{results: []*outputv1.BanResponse{{Results: []*outputv1.Result{{Error: huge}}}}}, setBans, "larger than max"},
		"a ban of nobody":         {liar{changes: []*outputv1.BanChange{{Add: []*outputv1.Ban{{Source: "everybody"}}}}}, watch, "everybody"},
		"a ban that is no prefix": {liar{changes: []*outputv1.BanChange{{Remove: []*outputv1.Ban{{Source: "203.0.113.7/0"}}}}}, watch, "to be written"},
		"an end without an end":   {liar{changes: []*outputv1.BanChange{{More: true}}}, watch, "stopped watching"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tt.call(tt.liar.call(t)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestAnswerBeforeAllBans(t *testing.T) {
	l := &liar{early: true}
	many := slices.Repeat([]detector.Ban{ban}, 200_000) // more than the connection takes in by itself
	if results, err := l.call(t).SetBans(t.Context(), many); err == nil {
		t.Errorf("%d results and no error", len(results))
	}
}

func TestTextOfALiar(t *testing.T) {
	escape := "\x1b[2J" + strings.Repeat("x", 3000) + "\n"
	l := &liar{
		describe: &outputv1.DescribeResponse{
			Name: escape, Version: escape, Summary: escape,
			Abilities:    []outputv1.Ability{99, outputv1.Ability_ABILITY_DELIVER, 0},
			Capabilities: slices.Repeat([]string{escape}, 100),
		},
		configure: &outputv1.ConfigureResponse{
			Faults: slices.Repeat([]*outputv1.Fault{{Key: escape, Text: escape}}, 150),
		},
		deliver: &outputv1.DeliverResponse{Error: escape},
		results: []*outputv1.BanResponse{{Results: []*outputv1.Result{{Error: escape}}}},
	}
	c := l.call(t)
	d, err := c.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantTame(t, d.Name, maxName)
	wantTame(t, d.Version, maxName)
	wantTame(t, d.Summary, maxSummary)
	wantTame(t, d.Capabilities[0], maxName)
	if len(d.Capabilities) != maxCapabilities || !slices.Equal(d.Abilities, []Ability{Delivers}) {
		t.Errorf("%d capabilities, abilities %v", len(d.Capabilities), d.Abilities)
	}

	faults, ok := errors.AsType[Faults](c.Configure(t.Context(), Configuration{}))
	if !ok || len(faults) != maxFaults {
		t.Fatalf("%d faults, want %d", len(faults), maxFaults)
	}
	wantTame(t, faults[0].Key, maxKey)
	wantTame(t, faults[0].Text, maxFaultText)

	wantTame(t, c.Deliver(t.Context(), "boot", []detector.Event{event}).Error(), maxFaultText)

	got, err := c.SetBans(t.Context(), []detector.Ban{ban})
	if err != nil {
		t.Fatal(err)
	}
	wantTame(t, got[0].Err.Error(), maxFaultText)
}

func wantTame(t *testing.T, s string, limit int) {
	t.Helper()
	if s == "" || len(s) > limit || strings.ContainsAny(s, "\x1b\n") {
		t.Errorf("%d bytes, %.40q; want at most %d without control characters", len(s), s, limit)
	}
}

func TestErrorOfALiar(t *testing.T) {
	l := &liar{fail: status.Error(codes.Unavailable, "\x1b[2J"+strings.Repeat("x", 3000)+"\n")}
	err := l.call(t).WatchBans(t.Context(), func(BanChange) error { return nil })
	wantTame(t, err.Error(), maxFaultText+100)
	if status.Code(err) != codes.Unavailable {
		t.Errorf("error %v, want %v", err, codes.Unavailable)
	}

	l.fail = status.Error(codes.Unavailable, strings.Repeat("x", 8<<20))
	err = l.call(t).WatchBans(t.Context(), func(BanChange) error { return nil })
	wantTame(t, err.Error(), maxFaultText+100)
}

func TestMissingAbility(t *testing.T) {
	l := &liar{}
	if err := l.call(t).Flush(t.Context()); status.Code(err) != codes.Unimplemented {
		t.Errorf("error %v, want %v", err, codes.Unimplemented)
	}
}
