package bench

// A planned workload is the phases that it consists of.
type planned struct {
	workload string
	phases   []plannedPhase
}

type plannedPhase struct {
	phase
	floor  phase // nil for none
	versus phase // another phase that its rate is compared with; nil for none
}

// plan says what to run. Phases of one title are one: they are run once a round, for all workloads that have them.
func (c *Config) plan() []planned {
	publishFloor := &floorPhase{workers: c.Publishers, batch: c.Batch}
	consumeFloor := &floorPhase{workers: c.Consumers, batch: c.Batch}
	publishOne := &publishPhase{subscriptions: 1}
	drainOne := &drainPhase{backlog: c.Messages, publishBatch: c.PublishBatch, subscriptions: 1}
	few := min(c.Messages, 100_000)
	var plan []planned
	for _, workload := range c.Workloads {
		w := planned{workload: workload, phases: append(c.httpPlan(workload), c.growthPlan(workload)...)}
		switch workload {
		case "publish":
			w.phases = []plannedPhase{{phase: publishOne, floor: publishFloor}}
		case "drain":
			w.phases = []plannedPhase{{phase: drainOne, floor: consumeFloor}}
		case "sustained":
			w.phases = []plannedPhase{{phase: &sustainedPhase{}, floor: publishFloor}}
		case "fanout":
			w.phases = []plannedPhase{
				{phase: publishOne, floor: publishFloor},
				{phase: &publishPhase{subscriptions: c.Subscriptions}, floor: publishFloor, versus: publishOne},
				{
					phase: &drainPhase{backlog: max(c.Messages/c.Subscriptions, 1), publishBatch: c.PublishBatch, subscriptions: c.Subscriptions},
					floor: consumeFloor,
				},
			}
		case "filter":
			w.phases = []plannedPhase{{
				phase: &drainPhase{backlog: c.Messages, publishBatch: c.PublishBatch, subscriptions: 1, share: c.FilterShare},
				floor: consumeFloor,
			}}
		case "poll":
			w.phases = []plannedPhase{{phase: &pollPhase{}}}
		case "nack":
			w.phases = []plannedPhase{{
				phase: &drainPhase{backlog: few, publishBatch: c.PublishBatch, subscriptions: 1, failures: 1},
				floor: consumeFloor,
			}}
		case "failures":
			w.phases = []plannedPhase{{
				phase:  &drainPhase{backlog: c.Messages, publishBatch: c.PublishBatch, subscriptions: 1, failures: c.FailureShare},
				floor:  consumeFloor,
				versus: drainOne,
			}}
		case "expiry":
			w.phases = []plannedPhase{
				{phase: &expiryPhase{leases: few, publishBatch: c.PublishBatch}},
				{phase: &expiryPhase{leases: few, publishBatch: c.PublishBatch, acked: true}},
			}
		case "spill":
			w.phases = []plannedPhase{
				{phase: &spillPhase{backlog: few, publishBatch: c.PublishBatch}, floor: consumeFloor},
				{phase: &spillPhase{backlog: few, publishBatch: 1}, floor: consumeFloor},
			}
		case "receive":
			w.phases = []plannedPhase{{phase: &receivePhase{backlog: c.Messages, publishBatch: c.PublishBatch}, versus: drainOne}}
		case "receive-tx":
			some := min(c.Messages, 20_000)
			w.phases = []plannedPhase{{
				phase:  &receivePhase{backlog: some, publishBatch: c.PublishBatch, tx: true},
				versus: &insertPhase{transactions: some},
			}}
		case "receive-failures":
			w.phases = []plannedPhase{{
				phase:  &receivePhase{backlog: c.Messages, publishBatch: c.PublishBatch, failures: c.FailureShare},
				versus: &receivePhase{backlog: c.Messages, publishBatch: c.PublishBatch},
			}}
		case "receive-steady":
			w.phases = []plannedPhase{{phase: &steadyPhase{publishers: c.Publishers}, floor: &floorPhase{workers: c.Publishers, batch: 1}}}
		case "waiting":
			w.phases = []plannedPhase{{phase: &waitingPhase{}, floor: publishFloor}}
		case "idle":
			w.phases = []plannedPhase{{phase: &idlePhase{subscriptions: 1}}, {phase: &idlePhase{subscriptions: idleConsumers}}}
		case "wake":
			w.phases = []plannedPhase{{phase: &wakePhase{}}, {phase: &wakePhase{otherProcess: true}}}
		case "metrics":
			backlog := 2 * c.Messages
			w.phases = []plannedPhase{
				{phase: &metricsPhase{backlog: backlog, publishBatch: c.PublishBatch}},
				{phase: &metricsPhase{backlog: backlog, publishBatch: 1}},
				{phase: &metricsPhase{backlog: backlog, publishBatch: c.PublishBatch, share: c.FilterShare}},
			}
		}
		plan = append(plan, w)
	}
	return plan
}

// distinct lists the phases of a plan, floors right before who is compared with them.
func distinct(plan []planned) []phase {
	var all []phase
	seen := make(map[string]bool)
	add := func(p phase) {
		if p != nil && !seen[p.title()] {
			seen[p.title()] = true
			all = append(all, p)
		}
	}
	for _, w := range plan {
		for _, p := range w.phases {
			add(p.floor)
			add(p.versus)
			add(p.phase)
		}
	}
	return all
}
