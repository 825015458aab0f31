package outputapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

// maxBans is the most bans of one call.
const maxBans = 1 << 20

// The most bytes of the texts of faults and rejections, and the most faults.
const (
	maxKey       = 200
	maxFaultText = 1024
	maxReason    = 200
	maxFaults    = 100
)

// A server is a module's side of the protocol: it checks what comes, keeps the
// order of calls that Module promises, and answers within the limits.
type server struct {
	outputv1.UnimplementedOutputServer

	module Module
	events turn // for Deliver
	bans   turn // for SetBans and ChangeBans
	watch  turn // for WatchBans

	asked bool        // for Configure; who holds events and bans may use it
	ready atomic.Bool // Configure succeeded
}

func newServer(m Module) *server {
	return &server{module: m, events: make(turn, 1), bans: make(turn, 1), watch: make(turn, 1)}
}

// A turn is a lock that one can stop waiting for.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for an earlier call: %w", ctx.Err())
	}
}

func (t turn) give() { <-t }

// takeAll waits for every call but WatchBans to end and keeps out new ones,
// until giveAll.
func (s *server) takeAll(ctx context.Context) error {
	if err := s.events.take(ctx); err != nil {
		return err
	}
	if err := s.bans.take(ctx); err != nil {
		s.events.give()
		return err
	}
	return nil
}

func (s *server) giveAll() {
	s.bans.give()
	s.events.give()
}

func (s *server) checkReady() error {
	if !s.ready.Load() {
		return status.Error(codes.FailedPrecondition, "the module is not configured")
	}
	return nil
}

func missing(ability Ability) error {
	return status.Errorf(codes.Unimplemented, "the module has not the ability %q", ability)
}

// Describe answers with what the module says of itself.
func (s *server) Describe(context.Context, *outputv1.DescribeRequest) (*outputv1.DescribeResponse, error) {
	d, err := Describe(s.module)
	if err != nil {
		return nil, err
	}
	return fromDescription(d), nil
}

// Configure hands the settings to the module, once.
func (s *server) Configure(ctx context.Context, m *outputv1.ConfigureRequest) (*outputv1.ConfigureResponse, error) {
	c, err := toConfiguration(m)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.takeAll(ctx); err != nil {
		return nil, err
	}
	defer s.giveAll()
	if s.asked {
		return nil, status.Error(codes.FailedPrecondition, "the module was configured before; start a new one")
	}
	s.asked = true
	if err := s.module.Configure(ctx, c); err != nil {
		return &outputv1.ConfigureResponse{Faults: fromFaults(err)}, nil
	}
	s.ready.Store(true)
	return &outputv1.ConfigureResponse{}, nil
}

func toConfiguration(m *outputv1.ConfigureRequest) (Configuration, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal([]byte(m.GetSettings()), &object); err != nil || object == nil {
		return Configuration{}, errors.New("the settings are no JSON object")
	}
	if dir := m.GetStateDirectory(); dir != "" && !filepath.IsAbs(dir) {
		return Configuration{}, fmt.Errorf("the state directory %q is not absolute", dir)
	}
	return Configuration{
		Settings:    json.RawMessage(m.GetSettings()),
		BootID:      outputv1.Text(m.GetBootId(), maxName),
		StateDir:    m.GetStateDirectory(),
		HostVersion: outputv1.Text(m.GetHostVersion(), maxName),
		Check:       m.GetCheck(),
	}, nil
}

// fromFaults makes a fault of any other error.
func fromFaults(err error) []*outputv1.Fault {
	faults, ok := errors.AsType[Faults](err)
	if !ok || len(faults) == 0 {
		faults = Faults{{Text: outputv1.ErrorText(err)}}
	}
	var messages []*outputv1.Fault
	for _, f := range faults[:min(len(faults), maxFaults)] {
		messages = append(messages, &outputv1.Fault{
			Key:  outputv1.Text(f.Key, maxKey),
			Text: outputv1.Text(f.Text, maxFaultText),
		})
	}
	return messages
}

// Deliver hands events to the module. Those with an action of a later version
// are accepted and left.
func (s *server) Deliver(ctx context.Context, m *outputv1.DeliverRequest) (*outputv1.DeliverResponse, error) {
	deliverer, ok := s.module.(Deliverer)
	if !ok {
		return nil, missing(Delivers)
	}
	if err := s.checkReady(); err != nil {
		return nil, err
	}
	events, err := toEvents(m)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.events.take(ctx); err != nil {
		return nil, err
	}
	defer s.events.give()
	accepted := &outputv1.DeliverResponse{AcceptedThrough: m.GetLastSequence()}
	if len(events) == 0 {
		return accepted, nil
	}
	err = deliverer.Deliver(ctx, events)
	if partial, ok := errors.AsType[*Partial](err); ok {
		return fromPartial(partial), nil
	}
	if err != nil {
		return nil, err
	}
	return accepted, nil
}

func toEvents(m *outputv1.DeliverRequest) ([]detector.Event, error) {
	if len(m.GetEvents()) > maxEvents {
		return nil, fmt.Errorf("%d events, more than %d", len(m.GetEvents()), maxEvents)
	}
	events := make([]detector.Event, 0, len(m.GetEvents()))
	var last uint64
	for _, message := range m.GetEvents() {
		if message.GetSequence() <= last {
			return nil, fmt.Errorf("event %d after event %d", message.GetSequence(), last)
		}
		last = message.GetSequence()
		ev, err := outputv1.ToEvent(message)
		if errors.Is(err, outputv1.ErrUnknownAction) {
			continue
		}
		if err != nil {
			return nil, err
		}
		events = append(events, ev)
	}
	if last == 0 || last != m.GetLastSequence() {
		return nil, fmt.Errorf("the last event is %d, not %d", last, m.GetLastSequence())
	}
	return events, nil
}

func fromPartial(p *Partial) *outputv1.DeliverResponse {
	m := &outputv1.DeliverResponse{AcceptedThrough: p.Through, Error: outputv1.ErrorText(p.Err)}
	for _, r := range p.Rejected[:min(len(p.Rejected), maxEvents)] {
		m.Rejected = append(m.Rejected, &outputv1.Rejection{
			Sequence: r.Sequence,
			Reason:   outputv1.Text(r.Reason, maxReason),
		})
	}
	return m
}

// SetBans waits for all bans and states them to the module.
func (s *server) SetBans(stream grpc.BidiStreamingServer[outputv1.SetBansRequest, outputv1.BanResponse]) error {
	return s.keepBans(stream.Context(), stream.Send, func(keeper BanKeeper) ([]Result, int, error) {
		var bans []detector.Ban
		err := eachMessage(stream.Recv, func(m *outputv1.SetBansRequest) error {
			return appendBans(&bans, m.GetBans())
		})
		if err != nil {
			return nil, 0, err
		}
		results, err := keeper.SetBans(stream.Context(), bans)
		return results, len(bans), err
	})
}

// ChangeBans waits for the whole change and tells the module.
func (s *server) ChangeBans(stream grpc.BidiStreamingServer[outputv1.ChangeBansRequest, outputv1.BanResponse]) error {
	return s.keepBans(stream.Context(), stream.Send, func(keeper BanKeeper) ([]Result, int, error) {
		var add, remove []detector.Ban
		err := eachMessage(stream.Recv, func(m *outputv1.ChangeBansRequest) error {
			return errors.Join(appendBans(&add, m.GetAdd()), appendBans(&remove, m.GetRemove()))
		})
		if err != nil {
			return nil, 0, err
		}
		results, err := keeper.ChangeBans(stream.Context(), add, remove)
		return results, len(add), err
	})
}

// keepBans runs a ban call in its turn and sends the results, of which there
// are to be as many as call says.
func (s *server) keepBans(
	ctx context.Context, send func(*outputv1.BanResponse) error, call func(BanKeeper) ([]Result, int, error),
) error {
	keeper, ok := s.module.(BanKeeper)
	if !ok {
		return missing(KeepsBans)
	}
	if err := s.checkReady(); err != nil {
		return err
	}
	if err := s.bans.take(ctx); err != nil {
		return err
	}
	defer s.bans.give()
	results, bans, err := call(keeper)
	if err != nil {
		return err
	}
	if results != nil && len(results) != bans {
		return status.Errorf(codes.Internal, "the module answered %d bans with %d results", bans, len(results))
	}
	return inParts(fromResults(results), func(part []*outputv1.Result) error {
		return send(&outputv1.BanResponse{Results: part})
	})
}

func fromResults(results []Result) iter.Seq[*outputv1.Result] {
	return func(yield func(*outputv1.Result) bool) {
		for _, r := range results {
			if !yield(outputv1.FromResult(r.Err, r.Acts)) {
				return
			}
		}
	}
}

// eachMessage calls use for each message of a stream until its regular end.
func eachMessage[M any](receive func() (*M, error), use func(*M) error) error {
	for {
		m, err := receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := use(m); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
}

func appendBans(bans *[]detector.Ban, messages []*outputv1.Ban) error {
	if len(*bans)+len(messages) > maxBans {
		return fmt.Errorf("more than %d bans", maxBans)
	}
	for _, m := range messages {
		b, err := outputv1.ToBan(m)
		if err != nil {
			return err
		}
		*bans = append(*bans, b)
	}
	return nil
}

// inParts calls send with as many messages at a time as are sure to fit into a
// message of the protocol.
func inParts[M proto.Message](messages iter.Seq[M], send func([]M) error) error {
	const (
		room    = outputv1.MaxMessage - 4096 // for what else a message holds
		framing = 6                          // of an element: its number and length
	)
	var part []M
	size := 0
	for m := range messages {
		n := proto.Size(m) + framing
		if len(part) > 0 && (size+n > room || len(part) == maxEvents) {
			if err := send(part); err != nil {
				return err
			}
			part, size = nil, 0
		}
		part, size = append(part, m), size+n
	}
	if len(part) == 0 {
		return nil
	}
	return send(part)
}

// Flush has the module put away what it holds.
func (s *server) Flush(ctx context.Context, _ *outputv1.FlushRequest) (*outputv1.FlushResponse, error) {
	flusher, ok := s.module.(Flusher)
	if !ok {
		return nil, missing(Flushes)
	}
	if err := s.checkReady(); err != nil {
		return nil, err
	}
	if err := s.takeAll(ctx); err != nil {
		return nil, err
	}
	defer s.giveAll()
	if err := flusher.Flush(ctx); err != nil {
		return nil, err
	}
	return &outputv1.FlushResponse{}, nil
}

// WatchBans passes on what the module tells of.
func (s *server) WatchBans(_ *outputv1.WatchBansRequest, stream grpc.ServerStreamingServer[outputv1.BanChange]) error {
	source, ok := s.module.(BanSource)
	if !ok {
		return missing(WatchesBans)
	}
	if err := s.checkReady(); err != nil {
		return err
	}
	if err := s.watch.take(stream.Context()); err != nil {
		return err
	}
	defer s.watch.give()
	teller := &teller{send: stream.Send}
	defer teller.close()
	return source.WatchBans(stream.Context(), teller.tell)
}

// A teller sends changes one at a time, and none once the call has ended.
type teller struct {
	send func(*outputv1.BanChange) error

	mu     sync.Mutex
	closed bool
}

var errClosed = errors.New("the call of WatchBans has ended")

func (t *teller) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}

func (t *teller) tell(c BanChange) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	parts := fromBanChange(c)
	for i, m := range parts {
		m.More = i < len(parts)-1
		if err := t.send(m); err != nil {
			return err
		}
	}
	return nil
}

// fromBanChange returns at least one message.
func fromBanChange(c BanChange) []*outputv1.BanChange {
	var parts []*outputv1.BanChange
	_ = inParts(fromBans(c.Add), func(part []*outputv1.Ban) error {
		parts = append(parts, &outputv1.BanChange{Add: part, Whole: c.Whole})
		return nil
	})
	_ = inParts(fromBans(c.Remove), func(part []*outputv1.Ban) error {
		parts = append(parts, &outputv1.BanChange{Remove: part, Whole: c.Whole})
		return nil
	})
	if len(parts) == 0 {
		parts = append(parts, &outputv1.BanChange{Whole: c.Whole})
	}
	return slices.Clip(parts)
}

func fromBans(bans []detector.Ban) iter.Seq[*outputv1.Ban] {
	return func(yield func(*outputv1.Ban) bool) {
		for i := range bans {
			if !yield(outputv1.FromBan(&bans[i])) {
				return
			}
		}
	}
}
